"""2. Text -> calibration and evaluation tokens.

documents (python_docs, text, huggingface) -> two sides (splits) -> one stream of tokens a side (tokenise,
byte_counts) -> rows of T+1 tokens (packing) -> TokenData. Files of ready tokens (tokens) join at the stream.
Prompts with right and wrong answers (tasks) have a way of their own to the same TokenData.
"""

from mechint.data.batch import Batch
from mechint.data.dataset import Dataset
from mechint.data.huggingface import HuggingFaceText
from mechint.data.python_docs import PythonDocs
from mechint.data.text import TextFiles
from mechint.data.text_dataset import TextDataset
from mechint.data.token_data import TokenData
from mechint.data.tokens import TokenFiles

__all__ = [
    "Batch",
    "Dataset",
    "HuggingFaceText",
    "PythonDocs",
    "TextDataset",
    "TextFiles",
    "TokenData",
    "TokenFiles",
]
