"""`Probe`: obeys the doctor's orders on one host."""

from rufus_serve.config import ServeConfig
from rufus_serve.doctor.context import HostContext
from rufus_serve.doctor.examination import examine
from rufus_serve.doctor.links import Listener, reach
from rufus_serve.doctor.messages import Examine, Listen, Order, Reach, Reached, Reply
from rufus_serve.doctor.system import HostSystem, System


class Probe:
    """One host's part of an examination."""

    def __init__(self, system: System | None = None) -> None:
        self._system = system or HostSystem()
        self._listener: Listener | None = None

    def obey(self, order: Order) -> Reply:
        """Do it, and answer."""
        match order:
            case Examine():
                config = ServeConfig.model_validate(order.config)
                context = HostContext(self._system, config, order.placement, quick=order.quick)
                return examine(context, order.node)
            case Listen():
                self.close()
                self._listener = Listener(order)
                return self._listener.state
            case Reach():
                return Reached(links=reach(order))

    def close(self) -> None:
        """Listen no more; may be called twice."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None
