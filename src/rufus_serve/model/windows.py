"""Sliding windows: which layers see only the newest tokens, by the rules of each architecture."""

from rufus_serve.model.config_json import ConfigJson

_DEFAULT_MISTRAL_WINDOW = 4096
_LAYER_TYPES = ("full_attention", "sliding_attention")


def read_windows(config: ConfigJson) -> tuple[int, ...]:
    """The window of each layer in tokens; 0 sees the whole context.

    Raises:
        ModelError: a window is no size, or `layer_types` names other layers than there are.
    """
    num_layers = config.count("num_hidden_layers")
    match config.raw.get("model_type"):
        case "mistral":
            window = config.raw.get("sliding_window", _DEFAULT_MISTRAL_WINDOW)
            return (_size(config, window),) * num_layers
        case "mixtral":
            return (_size(config, config.raw.get("sliding_window")),) * num_layers
        case "qwen2" | "qwen3" | "qwen3_moe" if config.flag("use_sliding_window"):
            return _qwen(config, num_layers)
        case _:
            return (0,) * num_layers


def _qwen(config: ConfigJson, num_layers: int) -> tuple[int, ...]:
    window = _size(config, config.raw.get("sliding_window"))
    if config.raw.get("model_type") == "qwen3_moe":
        return (window,) * num_layers
    return tuple(window if is_sliding else 0 for is_sliding in _sliding(config, num_layers))


def _sliding(config: ConfigJson, num_layers: int) -> list[bool]:
    layer_types = config.raw.get("layer_types")
    if layer_types is None:
        first = config.count("max_window_layers", default=28)
        return [index >= first for index in range(num_layers)]
    if len(layer_types) != num_layers or not set(_LAYER_TYPES).issuperset(layer_types):
        config.refuse(
            f"layer_types must name {num_layers} times one of {', '.join(_LAYER_TYPES)}, "
            f"got {layer_types}"
        )
    return [kind == "sliding_attention" for kind in layer_types]


def _size(config: ConfigJson, window: object) -> int:
    if window is None:
        return 0
    if isinstance(window, bool) or not isinstance(window, int) or window < 1:
        config.refuse(f"sliding_window must be a positive integer, got {window!r}")
    return window
