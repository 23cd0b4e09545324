# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A certificate authority for one lab: who is the host, and, if it says so, who is the client?

Hosts get certificates for their loopback names and address, clients get one for an account. Whoever wants
to check a host's needs `ca_file`. All keys are made anew, live as long as the lab's folder, and are
readable by its owner only.

A login over TLS may prove that it saw the same certificate (channel bindings, RFC 5929 4,
tls-server-end-point). The lab knows what to expect and refuses another, which is how it would notice
somebody in the middle. Windows does so too where a client sends one (CbtHardeningLevel Relaxed); NTLM
without any is refused here, as by Windows with Strict.
"""

from __future__ import annotations

import datetime
import hashlib
import ipaddress
import os
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from spnego.channel_bindings import GssChannelBindings

# A lab lives for minutes; clocks of other machines do not matter to it.
LIFETIME: Final = datetime.timedelta(days=2)
LOOPBACK: Final = ipaddress.ip_address("127.0.0.1")


@dataclass(frozen=True)
class Certificate:
    """The files of a certificate and of its key."""

    certificate: Path
    key: Path


@dataclass(frozen=True)
class Tls:
    """What a host needs: how it speaks TLS, and the channel bindings of its certificate."""

    context: ssl.SSLContext
    bindings: GssChannelBindings


class Authority:
    """Signs the certificates of one lab."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Lab root")])
        authority = (
            self._builder(self._name, self._key)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(sign=True), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        self.ca_file = folder / "ca.pem"
        _write(self.ca_file, authority.public_bytes(serialization.Encoding.PEM))

    def host(self, name: str) -> Tls:
        """A TLS listener for a host of that name."""
        names = [x509.DNSName(name), x509.DNSName("localhost"), x509.IPAddress(LOOPBACK)]
        made, certificate = self._issue(name, names, ExtendedKeyUsageOID.SERVER_AUTH)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(made.certificate, made.key)
        # A client may show a certificate of this lab; most have none.
        context.load_verify_locations(self.ca_file)
        context.verify_mode = ssl.CERT_OPTIONAL
        digest = hashlib.sha256(certificate.public_bytes(serialization.Encoding.DER)).digest()
        return Tls(context, GssChannelBindings(application_data=b"tls-server-end-point:" + digest))

    def client(self, account: str) -> Certificate:
        """A certificate by which an account logs in."""
        return self._issue(account, [x509.RFC822Name("lab@lab.test")], ExtendedKeyUsageOID.CLIENT_AUTH)[0]

    def _issue(
        self, name: str, alternatives: list[x509.GeneralName], purpose: x509.ObjectIdentifier
    ) -> tuple[Certificate, x509.Certificate]:
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = (
            self._builder(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]), key)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(sign=False), critical=True)
            .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
            .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        stem = f"{certificate.serial_number:x}"
        made = Certificate(self._folder / f"{stem}.pem", self._folder / f"{stem}.key")
        _write(made.certificate, certificate.public_bytes(serialization.Encoding.PEM))
        pkcs8, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        _write(made.key, key.private_bytes(serialization.Encoding.PEM, pkcs8, plain))
        return made, certificate

    def _builder(self, name: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        # OpenSSL 3 with Python 3.13's strict checks wants both identifiers.
        own = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        return (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - LIFETIME)
            .not_valid_after(now + LIFETIME)
            .add_extension(own, critical=False)
            .add_extension(issuer, critical=False)
        )


def account_of(connection: ssl.SSLSocket) -> str | None:
    """The account that the client's certificate names; None where it showed none."""
    subject = (connection.getpeercert() or {}).get("subject", ())
    fields = [field for name in subject if isinstance(name, tuple) for field in name]
    return next((field[1] for field in fields if isinstance(field, tuple) and field[0] == "commonName"), None)


def _usage(*, sign: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not sign,
        key_cert_sign=sign,
        crl_sign=sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _write(path: Path, data: bytes) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(data)
