import pytest

from rufus_serve.config.environment import read, refused

OPENING = [
    "VLLM_API_KEY", "VLLM_SERVER_DEV_MODE", "VLLM_ENABLE_RESPONSES_API_STORE",
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING", "VLLM_ALLOW_INSECURE_SERIALIZATION",
    "VLLM_DEBUG_LOG_API_SERVER_RESPONSE", "VLLM_USE_RUST_FRONTEND", "SAGEMAKER_MODEL_PATH",
]  # fmt: skip


@pytest.mark.parametrize("name", OPENING)
def test_a_variable_that_opens_or_guards_something_is_refused_by_name(name: str) -> None:
    (line,) = refused({name: "1", "PATH": "/bin"})
    assert line.startswith(f"the environment variable {name} is not allowed: ")
    assert line.endswith("; unset it")


@pytest.mark.parametrize("text", ["", "0", "false", " False "])
def test_a_variable_that_is_off_is_let_be(text: str) -> None:
    assert refused({"VLLM_SERVER_DEV_MODE": text}) == []


def test_all_that_are_set_are_named_at_once() -> None:
    assert len(refused(dict.fromkeys(OPENING, "1"))) == len(OPENING)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("RUFUS_SERVICE_HOST", "10.0.0.1"),
        ("RUFUS_SERVE_PORT_8000_TCP", "tcp://10.0.0.1:8000"),
        ("RUFUS_PORT", "tcp://10.0.0.1:8000"),
    ],
)
def test_what_kubernetes_tells_of_a_service_is_no_setting(name: str, text: str) -> None:
    assert read({name: text, "RUFUS_NODES": "2"}) == {"nodes": ("RUFUS_NODES", "2")}


def test_a_port_of_ours_is_a_setting() -> None:
    assert read({"RUFUS_PORT": "8001"}) == {"port": ("RUFUS_PORT", "8001")}
