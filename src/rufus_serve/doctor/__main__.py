"""`python -m rufus_serve.doctor`: a probe; orders on standard input, replies on standard output."""

import sys
import traceback

from rufus_serve.doctor.messages import Failed, decode_order, encode
from rufus_serve.doctor.probe import Probe
from rufus_serve.errors import RufusError


def main() -> int:
    """Obey until standard input closes; the exit code."""
    probe = Probe()
    for line in sys.stdin.buffer:
        try:
            reply = probe.obey(decode_order(line))
        except RufusError as error:
            reply = Failed(reason=str(error), exit_code=error.exit_code)
        except Exception as error:  # noqa: BLE001 - the edge of the process
            traceback.print_exc()
            reply = Failed(reason=f"{type(error).__name__}: {error}", exit_code=1)
        sys.stdout.buffer.write(encode(reply) + b"\n")
        sys.stdout.buffer.flush()
    probe.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
