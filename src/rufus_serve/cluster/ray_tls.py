"""TLS among the Ray processes of several hosts, by certificates that the group's token makes.

Every host derives one authority from the token, so that nothing has to be handed over: whoever
shows a certificate of it knows the token. Ray asks both ends of each connection for one, and its
own token, which it sends in every call, goes to nobody else.
"""

import ipaddress
import socket
import ssl
from datetime import datetime, timezone
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from rufus_serve.errors import HandshakeRefused

_CURVE = ec.SECP256R1()
_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
"""Of the curve (SEC 2, secp256r1)."""
_ANSWER_S = 2.0
# A certificate is as good as the token, on hosts whose clocks may be wrong.
_SINCE = datetime(2020, 1, 1, tzinfo=timezone.utc)
_UNTIL = datetime(9999, 12, 31, 23, 59, 59, tzinfo=timezone.utc)
_AUTHORITY = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "rufus-serve group")])
_MEMBER = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "rufus-serve host")])


class GroupTls:
    """One process's, or one host's, certificate."""

    def __init__(self, group_token: str, folder: Path, *, address: str = "127.0.0.1") -> None:
        """Make a certificate for `address`; `folder` is created, for this user alone."""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._token = group_token
        self._authority, self._chain = folder / "authority.pem", folder / "host.pem"
        self._key = folder / "host-key.pem"
        authority_key = _authority_key(group_token)
        key = ec.generate_private_key(_CURVE)
        self._key.touch(mode=0o600)
        self._key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        self._authority.write_bytes(_authority(authority_key).public_bytes(Encoding.PEM))
        self._chain.write_bytes(_member(key, authority_key, address).public_bytes(Encoding.PEM))

    def of_host(self, folder: Path, address: str) -> "GroupTls":
        """Another certificate of this group, for a host's `address`."""
        return GroupTls(self._token, folder, address=address)

    @property
    def environ(self) -> dict[str, str]:
        """Variables that must be set before ray is imported or started."""
        return {
            "RAY_USE_TLS": "1",
            "RAY_TLS_SERVER_CERT": str(self._chain),
            "RAY_TLS_SERVER_KEY": str(self._key),
            "RAY_TLS_CA_CERT": str(self._authority),
        }

    def leader_address(self, host: str, port: int) -> str:
        """The address that the leader at `host` has by its certificate, which it must prove.

        Names and forwarded addresses are no matter: Ray is told of the address found here.

        Raises:
            OSError: nothing answers there.
            HandshakeRefused: what answers does not know the group's token.
        """
        context = ssl.create_default_context(cafile=str(self._authority))
        context.load_cert_chain(self._chain, self._key)
        context.check_hostname = False
        context.set_alpn_protocols(["h2"])
        with socket.create_connection((host, port), timeout=_ANSWER_S) as plain:
            try:
                with context.wrap_socket(plain) as proven:
                    return _first_address(proven.getpeercert() or {}, otherwise=host)
            except ssl.SSLEOFError:
                raise
            except ssl.SSLCertVerificationError as error:
                raise HandshakeRefused(
                    f"the leader at {host}:{port} refuses this host's token: it was started with "
                    "another one; give every host the same token file"
                ) from error
            except ssl.SSLError as error:
                raise HandshakeRefused(
                    f"what answers at {host}:{port} does not prove that it knows this host's token "
                    f"({error.reason}): it is no rufus-serve leader, or one of an older version"
                ) from error


def _authority_key(group_token: str) -> ec.EllipticCurvePrivateKey:
    derived = HKDF(SHA256(), 48, salt=None, info=b"rufus-serve ray tls v1")
    number = int.from_bytes(derived.derive(group_token.encode()), "big")
    return ec.derive_private_key(number % (_ORDER - 1) + 1, _CURVE)


def _authority(key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    usage = x509.KeyUsage(
        digital_signature=False, content_commitment=False, key_encipherment=False,
        data_encipherment=False, key_agreement=False, key_cert_sign=True, crl_sign=True,
        encipher_only=False, decipher_only=False,
    )  # fmt: skip
    constraints = x509.BasicConstraints(ca=True, path_length=0)
    builder = _builder(_AUTHORITY, key.public_key(), key)
    return (
        builder.add_extension(constraints, critical=True)
        .add_extension(usage, critical=True)
        .sign(key, SHA256())
    )


def _member(
    key: ec.EllipticCurvePrivateKey, authority_key: ec.EllipticCurvePrivateKey, address: str
) -> x509.Certificate:
    addresses = dict.fromkeys((address, "127.0.0.1"))
    names = [x509.IPAddress(ipaddress.ip_address(each)) for each in addresses]
    return (
        _builder(_MEMBER, key.public_key(), authority_key)
        .add_extension(x509.SubjectAlternativeName([*names, x509.DNSName("localhost")]), False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(authority_key, SHA256())
    )


def _builder(
    subject: x509.Name, key: ec.EllipticCurvePublicKey, authority_key: ec.EllipticCurvePrivateKey
) -> x509.CertificateBuilder:
    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key())
    return (
        x509.CertificateBuilder(_AUTHORITY, subject, key, x509.random_serial_number())
        .not_valid_before(_SINCE)
        .not_valid_after(_UNTIL)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(issuer, critical=False)
    )


def _first_address(certificate: object, *, otherwise: str) -> str:
    assert isinstance(certificate, dict)
    names = certificate.get("subjectAltName", ())
    found = [value for kind, value in names if kind == "IP Address"]
    return found[0] if found else otherwise
