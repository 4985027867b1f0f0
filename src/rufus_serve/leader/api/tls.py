"""TLS of the endpoint: a context that takes renewed certificates while connections go on."""

import logging
import ssl
from pathlib import Path

from rufus_serve.config.schema import HttpConfig
from rufus_serve.errors import ConfigError

_log = logging.getLogger(__name__)


class ServerTls:
    """The server's TLS context; new handshakes use the newest files. One thread at a time."""

    def __init__(self, http: HttpConfig) -> None:
        """Read the files.

        Raises:
            ConfigError: they cannot be read or do not belong together.
        """
        assert http.tls_certificate is not None
        self._certificate, self._client_ca = http.tls_certificate, http.tls_client_ca
        self._key = http.tls_key or http.tls_certificate
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            self._load()
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(
                f"http.tls_certificate {self._certificate} with http.tls_key {self._key} cannot "
                f"be used: {error}; both are PEM files, and the key belongs to the certificate"
            ) from error
        try:
            self._trust()
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(
                f"http.tls_client_ca {self._client_ca} cannot be used: {error}; it is a PEM file "
                "with authorities' certificates"
            ) from error
        self._seen = self._versions()

    def reload(self) -> None:
        """Take the files again if they changed; what is broken is logged and not taken."""
        seen = self._versions()
        if seen == self._seen:
            return
        self._seen = seen
        try:
            self._load()
            self._trust()
        except (OSError, ssl.SSLError) as error:
            _log.error("the renewed TLS files are not used: %s", error)
        else:
            _log.info("TLS certificate %s was renewed", self._certificate)

    def _load(self) -> None:
        # Fails on a pair that does not match before anything is replaced.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(self._certificate, self._key)
        self.context.load_cert_chain(self._certificate, self._key)

    def _trust(self) -> None:
        if self._client_ca:
            self.context.load_verify_locations(self._client_ca)
            self.context.verify_mode = ssl.CERT_REQUIRED

    def _versions(self) -> tuple[int, ...]:
        files = (self._certificate, self._key, self._client_ca)
        return tuple(_version(path) for path in files if path)


def _version(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0
