"""`ServeConfig`: every setting of rufus-serve, once.

YAML files, `RUFUS_*` variables, CLI flags, the configuration reference and the Helm values
schema are all derived from this model. The attribute docstrings are the help texts.
"""

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from rufus_serve.config.section import Section
from rufus_serve.config.speculation import SpeculationConfig

Port = Annotated[int, Field(ge=0, le=65535)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
SecondsOrZero = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_RECOVERY_S = 600.0
MOST_GROUPS = 64
"""Behind one endpoint."""
Ascending = tuple[Annotated[int, Field(gt=0)], ...]


class BucketConfig(Section):
    """The shapes that are compiled; every step runs in the smallest that holds it."""

    prefill: Ascending = (64, 128, 256, 512)
    """New tokens of one prefill step. Longer prompts take several steps."""
    decode_batch: Ascending = ()
    """Rows of one decode step. Empty: powers of two up to max_num_seqs."""
    context: Ascending = ()
    """Context lengths in tokens. Empty: powers of two from 128 up to max_model_len."""

    @model_validator(mode="after")
    def _ascending(self) -> "BucketConfig":
        for name in ("prefill", "decode_batch", "context"):
            sizes = getattr(self, name)
            if list(sizes) != sorted(set(sizes)):
                raise ValueError(f"{name} must ascend without repeats, got {list(sizes)}")
        if not self.prefill:
            raise ValueError("prefill needs at least one size")
        return self


class ClusterConfig(Section):
    """Where followers run and how they are reached."""

    kind: Literal["ray", "local"] = "ray"
    """`ray` places followers through Ray; `local` starts plain processes on this host."""
    ray_address: str = ""
    """Address of a Ray cluster to join (HOST:PORT). Empty: start one on this host."""
    interface: str = ""
    """Network interface or address that nodes reach each other by. Empty: chosen and shown."""
    ray_port: Port = 6379
    """Port of the Ray head when followers join from other hosts."""
    follower_on_leader_host: bool = True
    """Let the leader's host hold a follower. False: only those that joined by themselves."""
    control_port: Port = 0
    """Port of the supervisor's control socket; 0 takes a free one (single host only)."""
    step_port: Port = 0
    """Port on which each follower awaits step inputs; 0 takes a free one."""
    rendezvous_port: Port = 0
    """Port on which followers set up their collectives; 0 takes a free one."""
    token_file: Path | None = None
    """File with the token shared by all hosts. Required once followers join by themselves."""
    state_dir: str = ""
    """Folder in which a running group is noted. Empty: ~/.local/state/rufus-serve."""
    python: str = ""
    """Python interpreter of the followers' environment. Empty: the supervisor's own."""


class TimeoutConfig(Section):
    """Deadlines; nothing waits without one."""

    join_s: Seconds = 60.0
    """For a follower to be placed, started and heard of."""
    load_s: Seconds = 1800.0
    """For a follower to load its shard of the weights."""
    warm_up_s: Seconds = 1800.0
    """For the collectives to be set up and every bucket to run once."""
    leader_start_s: Seconds = 180.0
    """For the vLLM process to answer HTTP once followers are ready."""
    step_floor_s: Seconds = 10.0
    """The shortest deadline of one step; the actual one follows the measured step time."""
    heartbeat_s: Seconds = 0.5
    """How often followers and leader report to the supervisor."""
    heartbeat_lost_s: Seconds = 5.0
    """Silence after which a follower or leader counts as lost."""
    shutdown_grace_s: SecondsOrZero = 30.0
    """How long running requests may finish after SIGTERM before they are cancelled."""


class RecoveryConfig(Section):
    """What happens when a part of the group is lost."""

    max_restarts: Annotated[int, Field(ge=0)] = 10
    """Restarts without progress allowed within `window_s`; one more is a permanent failure."""
    window_s: Seconds = 600.0
    """Length of the sliding window in which restarts without progress are counted."""
    backoff_s: SecondsOrZero = 0.2
    """Wait before the second restart in a row; doubles with each further one."""
    max_backoff_s: Seconds = 30.0
    """Upper bound of the backoff."""
    deadline_s: SecondsOrZero = 0.0
    """How long `/health` stays 200 while the group recovers. 0: 600 s, with runtime `neuron` the
    limits of joining, loading and warming up, and in any case twice the last start or recovery."""
    on_leader_loss: Literal["wait", "exit"] = "exit"
    """What followers do when the leader is gone: keep their weights and wait, or exit."""
    standby_nodes: Annotated[int, Field(ge=0)] = 0
    """Followers held ready beside all groups', to take a lost node's place in any."""


class HttpConfig(Section):
    """The HTTP endpoint itself."""

    tls_certificate: Path | None = None
    """PEM file with the server's certificate chain; the endpoint then speaks HTTPS only."""
    tls_key: Path | None = None
    """PEM file with the certificate's key. Empty: it is in `tls_certificate`."""
    tls_client_ca: Path | None = None
    """PEM file with authorities; clients must then show a certificate of one of them."""
    cors_origins: tuple[str, ...] = ()
    """Origins whose web pages may call the API from a browser; `*` is all. Empty: none."""
    docs: bool = False
    """Serve /docs, /redoc and /openapi.json."""
    ui: bool = True
    """Serve the page at /ui; what it shows needs a key like any other request."""
    audit_log: str = ""
    """File that gets one JSON line per request; `-` is standard output. Empty: none."""
    max_connections: Annotated[int, Field(gt=0)] = 4096
    """Open connections; beyond it idle ones are closed, and new ones refused if none is idle."""
    max_connections_per_address: Annotated[int, Field(ge=0)] = 0
    """The same of one client address. 0: no bound, as behind a proxy all come from one."""
    max_header_kb: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 64.0
    """Largest request line and headers together; larger ones are answered 431."""
    header_timeout_s: Seconds = 15.0
    """For a connection's TLS handshake and for a request's headers to arrive."""
    body_timeout_s: Seconds = 60.0
    """For a request's body to arrive once its headers have."""
    write_timeout_s: Seconds = 60.0
    """How long a client may leave an answer unread before it is hung up."""
    keep_alive_s: Seconds = 75.0
    """How long a connection stays open between requests."""

    @property
    def scheme(self) -> str:
        """How URLs of the endpoint begin."""
        return "https" if self.tls_certificate else "http"


class TracingConfig(Section):
    """OpenTelemetry traces of requests."""

    endpoint: str = ""
    """OTLP endpoint over HTTP, as http://collector:4318/v1/traces. Empty: no traces."""
    ratio: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Share of requests that are traced, of those that come without a traceparent of their own."""


class LimitConfig(Section):
    """What the endpoint admits; beyond it, requests are refused at once."""

    max_waiting: Annotated[int, Field(gt=0)] = 1024
    """Requests that may wait for a slot; more are answered 429 with Retry-After."""
    request_timeout_s: Seconds = 3600.0
    """Longest time one request may take; then it ends with an error."""
    max_body_mb: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 4.0
    """Largest request body; a larger one is answered 413."""
    max_tokenize_kb: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 512.0
    """The same where tokens are only counted, as one thread does that for all requests."""
    max_stop_strings: Annotated[int, Field(gt=0)] = 64
    """Most stop strings, stop token ids or bad words of one request."""
    max_n: Annotated[int, Field(gt=0)] = 128
    """Largest `n`: answers to one prompt."""
    cap_max_tokens: bool = False
    """Cap a `max_tokens` beyond the context instead of refusing it; editors send such."""
    max_grammar_kb: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 64.0
    """Largest JSON schema, regular expression or grammar of one request."""
    max_schema_properties: Annotated[int, Field(gt=0)] = 256
    """Most properties of a JSON schema, at all depths together."""
    max_schema_enum: Annotated[int, Field(gt=0)] = 1000
    """Most `enum` values of a JSON schema, or choices, together."""
    max_schema_depth: Annotated[int, Field(gt=0)] = 32
    """Deepest nesting of a JSON schema's objects and arrays."""
    max_repetition: Annotated[int, Field(gt=0)] = 4096
    """Largest number in a repetition: `maxLength`, `maxItems` and the like, or `{m,n}`."""
    grammar_compile_s: Seconds = 3.0
    """CPU time that compiling one schema, regular expression or grammar may take."""


class BatchConfig(Section):
    """`/v1/files` and `/v1/batches`: requests kept on disk, answered when there is room."""

    folder: Path | None = None
    """Folder for the files and the state of batches. Empty: there are no such routes."""
    max_file_mb: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 100.0
    """Largest file that may be uploaded; a larger one is answered 413."""
    max_stored_mb: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 10_000.0
    """Files that one key may have, answers included; beyond it uploads are answered 413."""
    max_requests: Annotated[int, Field(gt=0)] = 50_000
    """Most lines of one batch."""
    max_open: Annotated[int, Field(gt=0)] = 16
    """Batches that one key may have open."""
    concurrency: Annotated[int, Field(ge=0)] = 0
    """Requests in flight for all batches together. 0: max_num_seqs."""


class ArtifactConfig(Section):
    """What `rufus-serve compile` made ahead of time."""

    location: str = ""
    """Folder or URL of artifacts, or a folder that NxD Inference compiled to. Empty: made anew."""
    required: bool = False
    """Refuse to shard or compile at serve time. In short: `--require-artifacts`."""
    cache: Path | None = None
    """Folder that each host copies its artifacts to. Empty: local ones are used in place."""
    threads: Annotated[int, Field(gt=0)] = 8
    """Files that are checked or copied at once."""


class CpuRuntimeConfig(Section):
    """The CPU runtime."""

    threads: Annotated[int, Field(ge=0)] = 0
    """Compute threads per follower. 0: the host's cores divided among its followers."""
    kernels: Literal["auto", "torch"] = "auto"
    """auto: compiled kernels where there are any for dtype, model and CPU. torch: plain torch."""
    collective: Literal["auto", "shared_memory", "sockets"] = "auto"
    """How shards are summed. `auto`: shared memory on one host, sockets across hosts."""
    kv_cache_gib: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """Memory for each follower's KV cache, in GiB."""
    strict_neuron: bool = False
    """Keep a Neuron device's rules: `neuron.kv_layout`, exact compiled shapes, equal calls."""


class NeuronRuntimeConfig(Section):
    """The Neuron runtime (NxD Inference)."""

    mode: Literal["device", "nxdi-cpu"] = "device"
    """`device` drives NeuronCores; `nxdi-cpu` runs NxD Inference's own CPU mode."""
    cores_per_node: Annotated[int, Field(gt=0)] = 32
    """NeuronCores each follower drives; tensor parallel degree = nodes x cores_per_node."""
    target: Literal["trn1", "inf2", "trn2"] = "trn1"
    """Device that graphs are compiled for, wherever they are compiled; trn1 is trn1n as well."""
    kv_layout: Literal["contiguous", "block"] = "contiguous"
    """`contiguous`: one KV line per sequence; `block`: paged, with prefix caching, experimental."""
    cp_degree: Annotated[int, Field(gt=0)] = 1
    """Context parallelism in prefill."""
    attention_dp_degree: Annotated[int, Field(gt=0)] = 1
    """Data parallelism over the decode batch in attention."""
    max_prefills_per_decode: Annotated[int, Field(gt=0)] = 1
    """Prompts that may be prefilled before running requests get their next token."""
    device_candidates: Annotated[int, Field(ge=0, le=1024)] = 0
    """Best tokens of each row that graphs find on the device, whose logits then stay there unless
    a row needs more. 0: whole rows come to the host, which finds them."""
    neuron_config: dict[str, Any] = Field(default_factory=dict)
    """Further NxD Inference NeuronConfig fields; unknown ones are refused."""


class ServeConfig(Section):
    """Everything `rufus-serve serve` can be told."""

    model: Annotated[str, Field(min_length=1)]
    """Folder with a Hugging Face checkpoint (config.json, safetensors, tokenizer)."""
    served_model_name: str = ""
    """Name in the API. Empty: the model folder's name."""
    runtime: Literal["cpu", "neuron"] = "cpu"
    """What followers compute on."""
    nodes: Annotated[int, Field(gt=0, le=64)] = 1
    """Followers of one group, one per node."""
    groups: Annotated[int, Field(gt=0, le=MOST_GROUPS)] = 1
    """Groups behind the endpoint, of `nodes` followers each; requests go on in another if one is
    lost."""
    host: str = "127.0.0.1"
    """Address the endpoint listens on."""
    port: Port = 8000
    """Port the endpoint listens on."""
    api_key_file: Path | None = None
    """File with API keys, one a line, or as `rufus-serve key` writes; all but health needs one."""
    allow_anonymous: bool = False
    """Let whoever reaches a `host` other than loopback use the endpoint without an API key."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Number format of weights and KV cache. `auto`: the checkpoint's own."""
    weights: Literal["auto", "int8"] = "auto"
    """`int8`: the layers' matrices in 8 bits, one scale per output, made while loading or
    compiling; embedding, output layer and KV cache keep `dtype`. `auto`: all keep it."""
    max_model_len: Annotated[int, Field(ge=0)] = 0
    """Longest prompt plus output in tokens. 0: the model's own limit."""
    max_num_seqs: Annotated[int, Field(gt=0)] = 8
    """Sequences decoded together by one group."""
    block_size: Annotated[int, Field(gt=0)] = 32
    """Tokens per KV block."""
    num_blocks: Annotated[int, Field(ge=0)] = 0
    """KV blocks to use. 0: as many as fit on every follower."""
    prefix_caching: bool = True
    """Reuse KV blocks of equal prompt beginnings."""
    async_scheduling: bool = True
    """Schedule step k+1 while step k runs."""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    """Least severe log line shown."""
    keep_logs: bool = False
    """Leave the run's folder, with the logs of followers and of Ray, when the server ends."""
    buckets: BucketConfig = BucketConfig()
    """Compiled shapes."""
    cluster: ClusterConfig = ClusterConfig()
    """Nodes and addresses."""
    timeouts: TimeoutConfig = TimeoutConfig()
    """Deadlines."""
    recovery: RecoveryConfig = RecoveryConfig()
    """Behaviour after a loss."""
    http: HttpConfig = HttpConfig()
    """The HTTP endpoint."""
    tracing: TracingConfig = TracingConfig()
    """Traces of requests."""
    limits: LimitConfig = LimitConfig()
    """Admission limits."""
    batch: BatchConfig = BatchConfig()
    """Files and batches."""
    speculation: SpeculationConfig = SpeculationConfig()
    """Speculative decoding."""
    artifacts: ArtifactConfig = ArtifactConfig()
    """Artifacts made ahead of time."""
    cpu: CpuRuntimeConfig = CpuRuntimeConfig()
    """Settings of runtime `cpu`."""
    neuron: NeuronRuntimeConfig = NeuronRuntimeConfig()
    """Settings of runtime `neuron`; of runtime `cpu` too with `cpu.strict_neuron`."""
    vllm_args: dict[str, Any] = Field(default_factory=dict)
    """vLLM engine and server options by their own names, checked at start."""

    @property
    def is_neuron_shaped(self) -> bool:
        """Whether followers keep a Neuron device's rules, be it on a device or on CPU."""
        return self.runtime == "neuron" or self.cpu.strict_neuron

    @property
    def num_speculative_tokens(self) -> int:
        """Most drafts of one request in one step; 0 without speculation."""
        return 0 if self.speculation.method == "none" else self.speculation.num_speculative_tokens

    @property
    def has_kv_lines(self) -> bool:
        """Whether each sequence has one line of KV cache, not blocks, and no prefix is cached."""
        return self.is_neuron_shaped and self.neuron.kv_layout == "contiguous"

    @property
    def num_ranked(self) -> int:
        """Followers of all groups together, stand-bys apart."""
        return self.groups * self.nodes

    @property
    def num_followers(self) -> int:
        """Follower processes in all: one per group and node, and the stand-bys."""
        return self.num_ranked + self.recovery.standby_nodes

    @property
    def recovery_deadline_s(self) -> float:
        """`recovery.deadline_s`, or what it stands for if it is 0."""
        if self.recovery.deadline_s:
            return self.recovery.deadline_s
        timeouts = self.timeouts
        every_process = timeouts.join_s + timeouts.load_s + timeouts.warm_up_s
        return every_process if self.runtime == "neuron" else _RECOVERY_S

    def for_followers(self) -> dict[str, Any]:
        """What followers are told: all but vLLM's options, which are the leader's alone."""
        return self.model_dump(mode="json", exclude={"vllm_args"})

    def group_hash(self) -> str:
        """Hash of what a follower's state depends on; leader and followers must agree on it.

        Endpoint, limits, logging and vLLM options are left out: a leader restarted with
        other ones may adopt the same followers.
        """
        fields = {
            "model", "runtime", "nodes", "dtype", "weights", "max_model_len", "max_num_seqs",
            "block_size", "num_blocks", "buckets", "speculation", "cpu", "neuron",
        }  # fmt: skip
        text = json.dumps(self.model_dump(mode="json", include=fields), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]
