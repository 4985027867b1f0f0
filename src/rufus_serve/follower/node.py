"""`FollowerNode`: the life of one follower, from hello to stop, on its main thread."""

import logging
import socket
import time
import traceback

from rufus_serve.channel.base import FollowerChannel, HelloInfo
from rufus_serve.channel.faults import with_follower_faults
from rufus_serve.channel.keys import GroupKeys
from rufus_serve.channel.zeromq import ZmqFollowerChannel
from rufus_serve.config import ServeConfig
from rufus_serve.errors import (
    CollectiveAborted,
    FollowerError,
    HandshakeRefused,
    LeaderLost,
    RufusError,
)
from rufus_serve.follower.control import Control
from rufus_serve.follower.runtimes import import_runtime, make_runtime
from rufus_serve.follower.standby import begin_reading
from rufus_serve.follower.stepper import Stepper
from rufus_serve.protocol.messages import (
    FollowerFailed,
    FollowerForming,
    FollowerGaveUp,
    FollowerLoaded,
    FollowerProgress,
    FollowerReady,
    FormGroup,
    Refused,
    RuntimeInfo,
    Stop,
    Welcome,
)
from rufus_serve.protocol.specs import STANDBY, FollowerSpec
from rufus_serve.runtime.base import GroupSpec, Runtime

_log = logging.getLogger(__name__)
_POLL_S = 0.02
_PROGRESS_S = 0.5


class FollowerNode:
    """Obeys the supervisor's orders and runs the leader's steps in between."""

    def __init__(self, spec: FollowerSpec) -> None:
        self._spec = spec
        self._config = ServeConfig.model_validate(spec.config)
        self._runtime: Runtime | None = None
        self._info: RuntimeInfo | None = None
        self._channel: FollowerChannel | None = None
        self._stepper: Stepper | None = None
        self._load_count = 0
        self._reported = 0.0
        self._phase = "joining"
        self._control = Control(
            spec, self._config, interrupt=self._interrupt, num_stale=self._num_stale
        )

    def run(self) -> None:
        """Serve until told to stop.

        Raises:
            HandshakeRefused: the supervisor does not take this follower.
            LeaderLost: the supervisor is gone and `recovery.on_leader_loss` is `exit`.
            RufusError: whatever kept it from serving; the supervisor was told.
        """
        try:
            import_runtime(self._config)
            if self._spec.node_rank == STANDBY:
                begin_reading(self._config)
            while self._obey_next_order():
                self._step_or_wait()
        except (HandshakeRefused, LeaderLost):
            raise
        except Exception as error:
            self._report_failure(error)
            raise
        finally:
            self._close()

    # ---- orders ----

    def _obey_next_order(self) -> bool:
        """Obey an order if there is one; False on `Stop`."""
        order = self._control.next_order(timeout_s=0.0 if self._stepper else _POLL_S)
        match order:
            case None:
                self._check_leader()
            case Stop():
                _log.info("stopping: %s", order.reason or "asked to")
                return False
            case Refused():
                raise HandshakeRefused(order.reason)
            case Welcome():
                self._load(order)
            case FormGroup():
                self._form(order)
        return True

    def _check_leader(self) -> None:
        silence_s = self._control.silence_s
        if self._control.is_leader_lost:
            raise LeaderLost(f"no word from the leader for {silence_s:.1f} s")
        if silence_s > self._config.timeouts.heartbeat_lost_s:
            self._stepper = None

    def _load(self, order: Welcome) -> None:
        if self._runtime is None:
            runtime = make_runtime(
                self._config,
                order.node_rank,
                group=order.group,
                num_followers_on_host=order.num_followers_on_host,
            )
            self._phase = "loading"
            self._runtime = runtime
            self._info = runtime.load(self._progress)
            self._load_count += 1
            _log.info("weights loaded in %.1f s", self._info.load_s)
        assert self._info is not None
        self._control.send(FollowerLoaded(info=self._info, load_count=self._load_count))

    def _form(self, order: FormGroup) -> None:
        assert self._runtime is not None
        self._stepper = None
        self._phase = "grouping"
        self._control.send(FollowerForming(epoch=order.epoch))
        try:
            self._runtime.join(_group_of(order))
            warm_up_s = self._warm_up(self._runtime) if order.warm_up else 0.0
        except CollectiveAborted as error:
            _log.warning("epoch %d was given up while it formed: %s", order.epoch, error)
            self._control.send(FollowerGaveUp(epoch=order.epoch, reason=str(error)))
            return
        channel = self._open_channel(order.node_rank)
        channel.begin(order.epoch)
        self._stepper = Stepper(self._runtime, epoch=order.epoch, node_rank=order.node_rank)
        self._phase = "ready"
        endpoint = channel.endpoint.endpoint
        self._control.send(FollowerReady(epoch=order.epoch, endpoint=endpoint, warm_up_s=warm_up_s))

    def _warm_up(self, runtime: Runtime) -> float:
        """The seconds that it took."""
        self._phase, began = "warming up", time.monotonic()
        runtime.warm_up(self._progress)
        return time.monotonic() - began

    def _open_channel(self, node_rank: int) -> FollowerChannel:
        if self._channel is None:
            info = HelloInfo(
                config_hash=self._config.group_hash(), sender_id=self._spec.follower_id
            )
            channel = ZmqFollowerChannel(
                info,
                GroupKeys.from_token(self._spec.token),
                node_rank=node_rank,
                host=socket.gethostname(),
                address=self._spec.address,
                port=self._spec.step_port,
            )
            self._channel = with_follower_faults(channel)
        return self._channel

    # ---- steps ----

    def _step_or_wait(self) -> None:
        if self._stepper is None or self._channel is None:
            return
        step = self._channel.receive(timeout_s=_POLL_S)
        if step is not None:
            self._channel.reply(self._stepper.run(step))

    # ---- called on other threads ----

    def _interrupt(self) -> None:
        if self._runtime is not None:
            self._runtime.abort()

    def _num_stale(self) -> int:
        return self._channel.num_stale if self._channel is not None else 0

    def _progress(self, done: int, total: int, detail: str) -> None:
        now = time.monotonic()
        if done == total or now - self._reported > _PROGRESS_S:
            self._reported = now
            self._control.send(FollowerProgress(done=done, total=total, detail=detail))

    # ---- the end ----

    def _report_failure(self, error: Exception) -> None:
        known = isinstance(error, RufusError)
        text = str(error) if known else "".join(traceback.format_exception(error)[-3:]).strip()
        code = error.exit_code if isinstance(error, RufusError) else FollowerError.exit_code
        self._control.send(FollowerFailed(phase=self._phase, error=text, exit_code=code))

    def _close(self) -> None:
        if self._channel is not None:
            self._channel.close()
        if self._runtime is not None:
            self._runtime.close()
        self._control.close()


def _group_of(order: FormGroup) -> GroupSpec:
    return GroupSpec(
        epoch=order.epoch,
        node_rank=order.node_rank,
        num_nodes=order.num_nodes,
        rendezvous=order.rendezvous,
        same_host=order.same_host,
        num_blocks=order.num_blocks,
    )
