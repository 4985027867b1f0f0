"""`Reference`: greedy tokens of fixed prompts, with their log probabilities, in one JSON file."""

from collections.abc import Sequence
from pathlib import Path

import msgspec

from rufus_serve.artifacts.identity import ModelIdentity
from rufus_serve.artifacts.manifest import write_atomically
from rufus_serve.errors import ModelError

FORMAT = 1
TOP = 20
"""Alternatives kept of each token; what vLLM gives at most by default."""

PROMPTS = (
    "The",
    "The capital of France is",
    "1, 1, 2, 3, 5, 8, 13,",
    "Translate into German: The weather is fine today, and we go for a walk.\n",
    'def is_prime(number: int) -> bool:\n    """Whether a number is prime."""\n',
    '{"name": "Ada Lovelace", "born": 1815, "known_for": [',
    "Water boils at a lower temperature on a mountain than at the sea. The reason is that the "
    "pressure of the air falls with height, and with it the temperature at which the pressure of "
    "the vapour equals it. At the top of Mount Everest this happens at about 71 degrees Celsius, "
    "so that food takes far longer to cook. In a closed pot",
    "Once upon a time there was a miller who had three sons, a mill, a donkey and a cat. The sons "
    "had to grind, the donkey had to fetch grain and carry flour, and the cat had to catch the "
    "mice. When the miller died, the three brothers divided what he left: the eldest received the "
    "mill, the second the donkey, the third the cat; nothing more was left for him. Then he was "
    "sad and said to himself: I have got the worst of it after all. My eldest brother can grind, "
    "my second can ride on his donkey, but what can I do with the cat? If I have a pair of gloves "
    "made of its fur, that is the end of it. But the cat, who had understood all that he said,",
)
"""From one token to longer than the smallest buckets; text, numbers, code and JSON."""


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """A greedy token."""

    token: int
    logprob: float
    """In nats, of the model's own distribution."""
    top: dict[int, float]
    """Log probabilities of the most likely tokens, this one among them."""

    @property
    def least(self) -> float:
        """No token that is not in `top` is more likely."""
        return min(self.top.values())


class Prompt(msgspec.Struct, frozen=True, kw_only=True):
    """A prompt and the greedy tokens after it."""

    text: str
    tokens: tuple[int, ...]
    choices: tuple[Choice, ...]


class Reference(msgspec.Struct, frozen=True, kw_only=True):
    """What every endpoint that serves the model should answer."""

    model: ModelIdentity
    made_by: str
    """The library, its version and the number format."""
    prompts: tuple[Prompt, ...]
    format: int = FORMAT


def write_reference(path: Path, reference: Reference) -> None:
    """Raises ModelError if `path` cannot be written."""
    try:
        write_atomically(path, msgspec.json.encode(reference) + b"\n")
    except OSError as error:
        raise ModelError(f"{path}: cannot be written: {error.strerror or error}") from error


def read_reference(path: Path) -> Reference:
    """Raises ModelError if there is none at `path`, or it is damaged or of another format."""
    try:
        found = msgspec.json.decode(path.read_bytes(), type=Reference)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror or error}") from error
    except msgspec.DecodeError as error:
        raise ModelError(
            f"{path}: no reference ({error}); make one with 'rufus-serve verify MODEL --make FILE'"
        ) from error
    if found.format != FORMAT:
        raise ModelError(f"{path}: format {found.format}, this rufus-serve reads {FORMAT}")
    return found


def chosen_tokens(choices: Sequence[Choice]) -> list[int]:
    """Their ids."""
    return [choice.token for choice in choices]
