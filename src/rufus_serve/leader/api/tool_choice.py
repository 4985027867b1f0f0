"""What tools mean where no tool parser was chosen: demanded calls are made, offered ones may not.

vLLM answers every request with tools 400 unless `tool_call_parser` names the model's own syntax.
A call that is demanded (`required`, or a named function) needs none: its form is enforced as a
JSON schema. Tools that are only offered are shown to the model, whose answer stays text.
"""

from typing import Any

from vllm.entrypoints.generate.base.protocol import DeltaMessage, ExtractedToolCallInformation
from vllm.tool_parsers.abstract_tool_parser import ToolParser, ToolParserManager

NAME = "demanded_calls_only"


class DemandedCallsOnly(ToolParser):  # type: ignore[misc]
    """Finds no calls in free text; vLLM itself reads the JSON of demanded ones."""

    def extract_tool_calls(self, model_output: str, *_: Any, **__: Any) -> Any:
        """The whole text is content."""
        return ExtractedToolCallInformation(tools_called=False, tool_calls=[], content=model_output)

    def extract_tool_calls_streaming(
        self, _previous: str, _current: str, delta_text: str, *_: Any, **__: Any
    ) -> Any:
        """Each piece of text is content."""
        return DeltaMessage(content=delta_text)


def register() -> None:
    """Make `NAME` known to vLLM's `tool_call_parser`."""
    ToolParserManager.register_module(name=NAME, module=DemandedCallsOnly)
