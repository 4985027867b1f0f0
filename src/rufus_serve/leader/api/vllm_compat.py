"""All that the API process takes from vLLM's internals of version 0.33, or mends in them.

Imported only once vLLM is wanted. Each function names what it stands in for.
"""

from typing import Any

from vllm.exceptions import VLLMValidationError
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.v1.structured_output.request import get_structured_output_key
from vllm.v1.structured_output.utils import grammar_is_likely_lark


def grammar_of(sampling_params: Any) -> tuple[str, str] | None:
    """Kind and text of what a request's output must match; None if anything will do."""
    wanted = getattr(sampling_params, "structured_outputs", None)
    if wanted is None or wanted.all_constraints_none():
        return None
    kind, text = get_structured_output_key(wanted)
    name = kind.name.lower()
    if name == "json_object":
        return None
    if name == "grammar" and grammar_is_likely_lark(text):
        name = "lark"
    return name, text


def num_prompt_logprobs(sampling_params: Any) -> int | None:
    """How many of the likeliest tokens are wanted beside each of a prompt's; -1: all of them."""
    wanted: int | None = getattr(sampling_params, "prompt_logprobs", None)
    return wanted


def is_cumulative(sampling_params: Any) -> bool:
    """Whether each output of a request holds all of its tokens so far."""
    kind = getattr(sampling_params, "output_kind", None)
    return bool(kind == RequestOutputKind.CUMULATIVE)


def invalid_request(message: str, *, parameter: str) -> Exception:
    """The error that vLLM's routes answer with status 400."""
    return VLLMValidationError(message, parameter=parameter)  # type: ignore[no-any-return]


def allow_several_greedy_answers() -> None:
    """Let `n` be more than 1 at temperature 0, as OpenAI's API does; the answers are equal.

    vLLM refuses it as a likely mistake (SamplingParams._verify_greedy_sampling), but nothing
    below depends on that.
    """
    SamplingParams._verify_greedy_sampling = lambda _: None  # noqa: SLF001


def allow_all_parameters_with_drafts(engine: Any) -> None:
    """Take min_p and logit_bias with speculation too: drafts are verified by drawing as ever.

    `SamplingParams._validate_spec_decode` refuses what vLLM's rejection sampler lacks.
    """
    engine.input_processor.speculative_config = None


def skip_sagemaker_handlers() -> None:
    """Keep /opt/ml/model/model.py, if there is one, from being executed.

    build_app calls sagemaker_standards_bootstrap, which imports that file for handlers.
    """
    from vllm.entrypoints.launchers import app

    app.sagemaker_standards_bootstrap = lambda built: built


def tell_that_nothing_is_stored() -> None:
    """Say `store: false` in every answer of /v1/responses; vLLM's leave it out."""
    from vllm.entrypoints.openai.responses.protocol import ResponsesResponse

    made = ResponsesResponse.from_request.__func__

    def from_request(cls: Any, *args: Any, **kwargs: Any) -> Any:
        response = made(cls, *args, **kwargs)
        response.store = False
        return response

    ResponsesResponse.from_request = classmethod(from_request)
