"""Words that prompts are made of; tasks take those that a tokenizer cuts alike."""

from __future__ import annotations


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


MEN = _words("""
    John James Michael David Robert Daniel Paul Mark Peter Thomas George Kevin Brian Steven Edward Henry
    Jack Adam Matthew Andrew Joseph Charles Richard William Eric Simon Alan Martin Patrick Scott Frank
    Tony Ryan Jason Justin Luke Sean Philip Victor Arthur Roger Walter Harry Dennis Carl Keith Nathan
    Samuel Oliver Leon Ivan Hugo Oscar Max
""")
WOMEN = _words("""
    Mary Sarah Emma Anna Laura Julia Jane Kate Alice Rachel Lisa Susan Karen Helen Maria Linda Amy Emily
    Jennifer Jessica Elizabeth Margaret Nancy Barbara Catherine Victoria Rose Ruth Sophia Grace Claire
    Diana Martha Carol Judith Sandra Michelle Angela Rebecca Laurie Lucy Amanda Melissa Hannah Ellen
    Joan Donna Sharon Julie Nicole Monica Olivia Eva Clara
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
