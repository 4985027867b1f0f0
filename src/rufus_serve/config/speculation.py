"""The settings of speculative decoding."""

from typing import Annotated, Literal

from pydantic import Field

from rufus_serve.config.section import Section


class SpeculationConfig(Section):
    """Speculative decoding: several tokens of a request in one step, all others unchanged."""

    method: Literal["none", "ngram", "fused", "eagle"] = "none"
    """`ngram` drafts what followed the last tokens where they stood before. `fused`: a draft model
    in NxD Inference's own graphs, which choose tokens greedily; `eagle`: an EAGLE head as that."""
    num_speculative_tokens: Annotated[int, Field(gt=0, le=64)] = 7
    """Most drafts that one request has checked in one step."""
    draft_model: str = ""
    """Folder with the checkpoint of methods `fused` and `eagle`, of the model's vocabulary."""
    prompt_lookup_min: Annotated[int, Field(gt=0)] = 2
    """Fewest tokens that must have stood before for drafts to be made."""
    prompt_lookup_max: Annotated[int, Field(gt=0)] = 5
    """Most tokens that are compared; of several places the longest match counts."""

    @property
    def is_fused(self) -> bool:
        """Whether followers' graphs draft and choose tokens; they tell nothing else of them."""
        return self.method in ("fused", "eagle")
