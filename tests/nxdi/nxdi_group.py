"""Followers of mode nxdi-cpu in processes of their own, driven by step requests or raw calls."""

import json
import logging
import multiprocessing
import multiprocessing.connection
import os
import tempfile
import warnings
from itertools import count
from pathlib import Path

import numpy as np

from rufus_serve.config.schema import ServeConfig
from rufus_serve.protocol.messages import StepRequest
from rufus_serve.runtime.base import GroupSpec

_SPAWN = multiprocessing.get_context("spawn")
_DEADLINE_S = 100
_names = count()


class Failed(Exception):
    """What a follower raised."""


def _follow(pipe, rank, settings, rendezvous, unguarded):
    """A follower's process: load, join, then whatever the pipe says."""
    warnings.filterwarnings("ignore")
    logging.disable(logging.ERROR)
    os.environ["OMP_NUM_THREADS"] = "1"
    runtime, verbs = _verbs(rank, settings, rendezvous, unguarded)
    while True:
        try:
            verb, *arguments = pipe.recv()
        except (EOFError, ConnectionError):
            return
        if verb == "close":
            runtime.close()
            return
        try:
            pipe.send((True, verbs[verb](*arguments)))
        except Exception as error:  # noqa: BLE001 - carried to the test
            pipe.send((False, f"{type(error).__name__}: {error}"))


def _verbs(rank, settings, rendezvous, unguarded):
    """The runtime, and by name what it can be told to do."""
    import torch

    from rufus_serve.runtime.neuron import NeuronRuntime
    from rufus_serve.runtime.neuron import neuron_model as module

    torch.set_num_threads(1)
    config = ServeConfig(**settings)
    if unguarded:
        unguarded(module)
    runtime = NeuronRuntime(config, rank, num_followers_on_host=config.nodes)

    def start():
        info = runtime.load(lambda *_: None)
        spec = GroupSpec(
            epoch=1, node_rank=rank, num_nodes=config.nodes, rendezvous=rendezvous,
            same_host=True, num_blocks=info.num_blocks,
        )  # fmt: skip
        runtime.join(spec)
        runtime.warm_up(lambda *_: None)
        return info

    def call(arguments):
        tensors = {name: torch.from_numpy(value) for name, value in arguments.items()}
        with torch.inference_mode():
            return runtime._application.forward(**tensors).logits[:, -1, :].numpy()

    def step(request):
        logits = getattr(runtime, request.phase.value)(request)
        return None if logits is None else logits.rows(np.arange(request.num_rows))

    return runtime, {
        "start": start,
        "choose": lambda request: getattr(runtime, request.phase.value)(request),
        "load": lambda: runtime.load(lambda *_: None),
        "step": step,
        "call": call,
        "probe": lambda function, *given: function(runtime, *given),
    }


class Group:
    """One follower process per rank. `unguarded` may take guards out of the followers' modules."""

    def __init__(self, settings, *, unguarded=None):
        stem = f"rufus-test-{os.getpid()}-{next(_names)}"
        self._store = Path(tempfile.gettempdir()) / f"{stem}.gloo"
        self._pipes, self._processes = [], []
        for rank in range(settings.get("nodes", 1)):
            ours, theirs = _SPAWN.Pipe()
            arguments = (theirs, rank, settings, stem, unguarded)
            process = _SPAWN.Process(target=_follow, args=arguments, daemon=True)
            process.start()
            self._pipes.append(ours)
            self._processes.append(process)
        self.info = None

    def start(self):
        self.info = self.all("start")[0]
        return self

    def all(self, verb, *arguments):
        """Every rank's answer, in order; the first error to come, whichever rank's it is.

        Whoever waits in a collective for a rank that failed would not answer.
        """
        for pipe in self._pipes:
            pipe.send((verb, *arguments))
        answers = {}
        while len(answers) < len(self._pipes):
            waiting = [pipe for pipe in self._pipes if pipe not in answers]
            ready = multiprocessing.connection.wait(waiting, _DEADLINE_S)
            assert ready, "a follower does not answer"
            answers |= {pipe: self._answer(pipe) for pipe in ready}
        return [answers[pipe] for pipe in self._pipes]

    def step(self, step: StepRequest):
        return self.all("step", step)[0]

    def probe(self, function, *arguments):
        """`function(runtime, *arguments)` in rank 0's process; a function of a test module."""
        return self.only(0, "probe", function, *arguments)

    def call(self, **arguments):
        return self.all("call", {name: np.asarray(value) for name, value in arguments.items()})[0]

    def kill(self, rank):
        self._processes[rank].kill()
        self._processes[rank].join(_DEADLINE_S)

    def only(self, rank, verb, *arguments):
        self._pipes[rank].send((verb, *arguments))
        return self._answer(self._pipes[rank])

    def only_until_killed(self, rank, step, *, killed, after_s):
        """A step on `rank` alone, whose peers are killed while it waits for them."""
        self._pipes[rank].send(("step", step))
        assert not self._pipes[rank].poll(after_s), "the step did not wait for its peers"
        for other in killed:
            self.kill(other)
        return self._answer(self._pipes[rank])

    def _answer(self, pipe):
        assert pipe.poll(_DEADLINE_S), "a follower does not answer"
        good, value = pipe.recv()
        if not good:
            raise Failed(value)
        return value

    def close(self):
        for pipe, process in zip(self._pipes, self._processes, strict=True):
            if process.is_alive():
                pipe.send(("close",))
        for pipe, process in zip(self._pipes, self._processes, strict=True):
            process.join(_DEADLINE_S)
            if process.is_alive():
                process.kill()
            pipe.close()
        self._pipes, self._processes = [], []
        self._store.unlink(missing_ok=True)


def write_llama(folder):
    """A tiny random Llama of 9 query and 3 KV heads."""
    return write_model(folder, "Llama", heads=9, kv_heads=3)


def write_model(folder, family, *, heads, kv_heads, **changes):
    """A tiny random model in `folder`, its config.json as transformers 4 writes it."""
    import torch
    import transformers

    torch.manual_seed(0)
    settings = {
        "vocab_size": 504, "hidden_size": heads * 16, "intermediate_size": 360,
        "num_hidden_layers": 2, "num_attention_heads": heads, "num_key_value_heads": kv_heads,
        "head_dim": 16, "max_position_embeddings": 2048, "rope_theta": 100000.0,
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2, "initializer_range": 0.2,
    }  # fmt: skip
    config = getattr(transformers, f"{family}Config")(**(settings | changes))
    model = getattr(transformers, f"{family}ForCausalLM")(config)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            # Biases start at zero and norms at one, where leaving them out would go unseen.
            parameter.data += 0.2 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    return Path(folder)


def as_transformers_5(folder):
    """Rewrite config.json's rotary settings the way transformers 5 does."""
    path = Path(folder) / "config.json"
    config = json.loads(path.read_text())
    rope = config.pop("rope_scaling", None) or {"rope_type": "default"}
    config["rope_parameters"] = {**rope, "rope_theta": config.pop("rope_theta")}
    path.write_text(json.dumps(config))


class Reference:
    """Last-position logits by transformers, computed from scratch."""

    def __init__(self, folder):
        import torch
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(1)
        self._torch = torch
        self._model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager"
        ).eval()

    def __call__(self, tokens):
        with self._torch.inference_mode():
            return self._model(self._torch.tensor([list(tokens)])).logits[0, -1].numpy()
