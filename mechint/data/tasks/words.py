"""Words that prompts are made of; tasks take those that a tokenizer cuts alike."""

from __future__ import annotations


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


MEN = _words("""
    John James Michael David Robert Daniel Paul Mark Peter Thomas George Kevin Brian Steven Edward Henry Jack
    Adam Matthew Andrew Joseph Charles Richard William Eric Simon Alan Martin Patrick Scott Frank Tony Ryan
    Jason Justin Luke Sean Philip Victor Arthur Roger Walter Harry Dennis Carl Keith Nathan Samuel Oliver Leon
    Ivan Hugo Oscar Max Tom Jim Bob Joe Mike Steve Dave Nick Tim Ben Dan Ken Ron Jeff Greg Doug Matt Josh Kyle
    Fred Bill Anthony Christopher Nicholas Jonathan Timothy Benjamin Gregory Stephen Kenneth Raymond Douglas
    Lawrence Albert Ralph Louis Bruce Howard Ernest Leonard Stanley Frederick Theodore Gordon Herbert Harold
    Eugene Russell Wayne Glenn Craig Derek Travis Marcus Ian Neil Colin Graham Stuart Duncan Malcolm Norman
    Clifford Edgar Alfred Felix Julian Sebastian Dominic Gabriel Isaac Elijah Noah Jacob Ethan Caleb Aaron Seth
    Joshua Dylan Evan Connor Blake Ross Clark Wesley Barry Larry Gary Jerry Randy Danny Jimmy Johnny Tommy
    Freddie Eddie Archie Ray Roy Ted Vincent Antonio Carlos Juan Jose Luis Miguel Pedro Diego Marco Mario
    Giovanni Hans Klaus Otto Erik Lars Omar Ahmed Mohammed Ibrahim Boris Igor Pierre Lloyd Hector Trevor Rodney
    Allan Maurice
""")
WOMEN = _words("""
    Mary Sarah Emma Anna Laura Julia Jane Kate Alice Rachel Lisa Susan Karen Helen Maria Linda Amy Emily
    Jennifer Jessica Elizabeth Margaret Nancy Barbara Catherine Victoria Rose Ruth Sophia Grace Claire Diana
    Martha Carol Judith Sandra Michelle Angela Rebecca Laurie Lucy Amanda Melissa Hannah Ellen Joan Donna Sharon
    Julie Nicole Monica Olivia Eva Clara Patricia Dorothy Betty Deborah Stephanie Carolyn Christine Marie Janet
    Samantha Debra Virginia Heather Teresa Evelyn Cheryl Mildred Katherine Joyce Kathleen Pamela Megan Andrea
    Lauren Cynthia Amber Brenda Brittany Danielle Natalie Kimberly Crystal Erica Tiffany Vanessa Allison Heidi
    Holly Kathy Wendy Tina Tara Beth Meg Peggy Polly Molly Sally Jenny Jill Gail Gwen Fiona Flora Ivy Iris Irene
    Isabel Isabella Jasmine Katie Lena Leah Lily Lydia Mabel Madeline Maggie Marilyn Miranda Mia Naomi Nina Nora
    Norma Paula Penelope Penny Phoebe Priscilla Regina Rita Roberta Rosa Rosemary Sabrina Shirley Silvia Sonia
    Sophie Stella Susie Sylvia Theresa Ursula Valerie Vera Veronica Vivian Yvonne Zoe Ada Adele Agnes Alison
    Amelia Anita Annie Audrey Ava Beatrice Bella Bonnie Charlotte Chloe Constance Cora Daisy Daphne Doris Edith
    Edna Eleanor Elena Elise Ella Eliza Esther Ethel Eunice Florence Geneva Georgia Gertrude Gloria Hazel
    Harriet Hilda Jacqueline Joanna Joy Kathryn Lillian Lois Louise Carmen Fatima Ingrid Aisha Olga Natasha
    Bianca Francesca
""")

PLACES = _words("""
    store garden park school restaurant office station hospital house library beach market church museum
""")
THINGS = _words("""
    drink ring book letter ball kiss gift bone snack basketball coat ticket lamp map
""")

# Things that last, for years.
EVENTS = _words("""
    war contract plan project trial voyage siege reign tour strike campaign journey conflict mission
    marriage alliance study treaty crisis debate drought famine lease boom dispute festival rally search
    truce
""")

# One and many of the same noun.
NOUNS = {
    "man": "men",
    "woman": "women",
    "postman": "postmen",
    "fireman": "firemen",
    "policeman": "policemen",
    "fisherman": "fishermen",
    "gentleman": "gentlemen",
    "chairman": "chairmen",
    "key": "keys", "book": "books", "car": "cars", "boy": "boys", "girl": "girls", "dog": "dogs", "cat": "cats",
    "doctor": "doctors", "teacher": "teachers", "student": "students", "friend": "friends", "king": "kings",
    "tree": "trees", "house": "houses", "ship": "ships", "bird": "birds", "farmer": "farmers", "soldier": "soldiers",
    "author": "authors", "artist": "artists", "painting": "paintings", "picture": "pictures", "letter": "letters",
    "window": "windows", "door": "doors", "table": "tables", "lamp": "lamps", "horse": "horses", "river": "rivers",
    "road": "roads", "bridge": "bridges", "player": "players", "singer": "singers", "actor": "actors",
    "lawyer": "lawyers", "driver": "drivers", "manager": "managers", "officer": "officers", "guest": "guests",
    "parent": "parents", "brother": "brothers", "sister": "sisters", "flower": "flowers", "stone": "stones",
}  # fmt: skip

# Names of arguments and functions.
IDENTIFIERS = _words("""
    load size files last name path value index count width height color token level state offset limit
    query image model data label source target option field table result message user group order price
    length shape items start stop step delay mode format input output key node root text line page date
    time code rate
""")
