"""Tasks: prompts with right and wrong answers, each beside a corrupted one, for circuits of one behaviour."""

from mechint.data.tasks.docstring import Docstring
from mechint.data.tasks.gendered_pronoun import GenderedPronoun
from mechint.data.tasks.greater_than import GreaterThan
from mechint.data.tasks.induction import InductionTask
from mechint.data.tasks.ioi import IndirectObject
from mechint.data.tasks.pairs import PromptPairs
from mechint.data.tasks.subject_verb_agreement import SubjectVerbAgreement

__all__ = [
    "Docstring",
    "GenderedPronoun",
    "GreaterThan",
    "IndirectObject",
    "InductionTask",
    "PromptPairs",
    "SubjectVerbAgreement",
]
