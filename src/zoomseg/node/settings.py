"""A node's settings from one YAML file: its identity, its peers, and its rules for series.

The file is checked as a whole before anything is opened; all its problems are reported together.
"""

from __future__ import annotations

import ipaddress
import re
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    model_validator,
)

from zoomseg.core.errors import ZoomSegError
from zoomseg.inference.memory_limits import parse_bytes
from zoomseg.io.bundle import is_model
from zoomseg.io.files import read_file
from zoomseg.recipe.load import parse_yaml
from zoomseg.recipe.problems import describe, short

MAX_FILE_BYTES = 200_000


class SettingsError(ZoomSegError):
    """A node's settings file is malformed, or requests something impossible."""


class Output(StrEnum):
    """A kind of object that a node creates; its file is called ``result.<suffix>``."""

    SEG = "seg"
    RTSTRUCT = "rtstruct"
    SR = "sr"
    SECONDARY_CAPTURE = "secondary_capture"


def _size(value: object) -> object:
    try:
        return parse_bytes(value) if isinstance(value, str) else value
    except ZoomSegError as error:
        raise ValueError(str(error)) from error


def _regular_expression(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"no regular expression ({error})") from error
    return text


def _address(text: str) -> str:
    try:
        ipaddress.ip_network(text)
    except ValueError as error:
        raise ValueError("neither an IP address nor a network such as 10.0.0.0/24") from error
    return text


AeTitle = Annotated[str, Field(pattern=r"^[!-\[\]-~]([ -\[\]-~]{0,14}[!-\[\]-~])?$")]
"""1 to 16 characters, no backslash, no blank at either end (PS3.5, VR AE)."""
Bytes = Annotated[int, BeforeValidator(_size), Field(ge=0)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
Port = Annotated[int, Field(ge=0, le=65535)]
Seconds = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Peer(_Part):
    """A peer that may open associations."""

    ae_title: AeTitle
    addresses: Annotated[tuple[Annotated[str, AfterValidator(_address)], ...], Field(min_length=1)]
    """IP addresses or networks from which it may connect."""

    def is_at(self, address: str) -> bool:
        """Whether an address is one of its own."""
        found = ipaddress.ip_address(address)
        if isinstance(found, ipaddress.IPv6Address):  # IPv4 as a socket of both kinds shows it
            found = found.ipv4_mapped or found
        return any(found in ipaddress.ip_network(network) for network in self.addresses)


class Completion(_Part):
    """When a study's series are considered complete."""

    quiet_seconds: Seconds = 30
    """After the last image, if its association was not released."""
    released_seconds: Seconds = 2
    """After the last image, when the associations that sent the study are released. Not used if a rule takes
    one series per study: its others may follow in associations of their own."""


class Limits(_Part):
    """Limits on what a node accepts."""

    associations: Annotated[int, Field(ge=1, le=1000)] = 10
    object_bytes: Bytes = 2 * 1024**3
    """Of one object; larger ones are refused."""
    free_bytes: Bytes = 1024**3
    """If the disk has less free space, everything is refused."""
    idle_seconds: Seconds = 60
    """Time after which a silent association is aborted."""


class Tls(_Part):
    """Certificates, as PEM files; ``~`` and paths relative to the settings' folder are understood."""

    certificate: Path
    key: Path
    authorities: Path
    """Certificate authorities of the other sides, whose certificates are required."""


class StatusPage(_Part):
    """The status page and the metrics."""

    host: str = "127.0.0.1"
    port: Port = 8080
    allow_hosts: tuple[str, ...] = ()
    """Names by which a reverse proxy reaches it."""


class Rule(_Part):
    """The series that a model segments, and the use of the results. All given conditions must be met."""

    name: Name
    modality: Literal["CT", "MR"]
    body_part: tuple[str, ...] = ()
    """Any of these values of BodyPartExamined, case-insensitive."""
    description: Annotated[str, AfterValidator(_regular_expression)] | None = None
    """A regular expression found in SeriesDescription, case-insensitive."""
    min_slices: Annotated[int, Field(ge=2)] = 10
    max_slices: int | None = None
    one_per_study: bool = False
    """Of a study's matching series, only the one with the most slices."""
    model: str
    """A folder, or the name of an included model."""
    organs: tuple[str, ...] = ()
    """Only these; all, if empty."""
    outputs: Annotated[tuple[Output, ...], Field(min_length=1)] = (Output.SEG, Output.RTSTRUCT, Output.SR)
    send_to: tuple[Name, ...] = ()
    """Names of destinations."""

    @model_validator(mode="after")
    def _some_number_fits(self) -> Self:
        if self.max_slices is not None and self.max_slices < self.min_slices:
            raise ValueError("max_slices is less than min_slices; no series would match")
        return self

    @model_validator(mode="after")
    def _report_has_segments(self) -> Self:
        if Output.SR in self.outputs and Output.SEG not in self.outputs:
            raise ValueError("the report (sr) refers to the segments of seg; ask for both")
        return self


class DimseDestination(_Part):
    """Destination of results by C-STORE, or source of studies by C-MOVE."""

    ae_title: AeTitle
    host: str
    port: Annotated[int, Field(ge=1, le=65535)]
    tls: bool = False
    """With the node's own certificate."""


_THIS_MACHINE = ("localhost", "127.0.0.1", "::1")


class WebDestination(_Part):
    """Destination of results by STOW-RS, or source of studies by QIDO-RS and WADO-RS."""

    url: Annotated[str, Field(pattern=r"^https?://")]
    """Of the DICOMweb service, without ``/studies``."""
    user: str | None = None
    password_variable: str | None = None
    """Environment variable with the password."""

    @model_validator(mode="after")
    def _user_has_password(self) -> Self:
        if (self.user is None) != (self.password_variable is None):
            need = "user needs password_variable, the environment variable with the password"
            raise ValueError(f"{need}; give both or neither")
        return self

    @model_validator(mode="after")
    def _password_is_not_overheard(self) -> Self:
        there = urlsplit(self.url)
        if self.user is not None and there.scheme == "http" and there.hostname not in _THIS_MACHINE:
            raise ValueError("a password would be sent in clear; the url must begin with https://")
        return self


def _protocol(data: object) -> str:
    """By which problems of a destination are reported for the protocol that is meant, not for both."""
    is_web = "url" in data if isinstance(data, dict) else isinstance(data, WebDestination)
    return "web" if is_web else "dimse"


Destination = DimseDestination | WebDestination
_Destination = Annotated[
    Annotated[DimseDestination, Tag("dimse")] | Annotated[WebDestination, Tag("web")],
    Discriminator(_protocol),
]


class Retry(_Part):
    """Schedule for sending results that were not accepted."""

    first_seconds: Seconds = 5
    """Before the second attempt; each further interval is twice as long."""
    longest_seconds: Seconds = 600
    give_up_hours: Annotated[float, Field(gt=0, le=8760)] = 72


class NodeSettings(_Part):
    """A node's complete settings."""

    ae_title: AeTitle = "ZOOMSEG"
    host: str = "0.0.0.0"
    port: Port = 11112
    folder: Path
    device: str = "auto"
    peers: Annotated[tuple[Peer, ...], Field(min_length=1)]
    complete: Completion = Completion()
    limits: Limits = Limits()
    retry: Retry = Retry()
    keep_hours: Annotated[float, Field(gt=0, le=8760 * 10)] = 48
    """Retention time of received images and results after all processing is finished."""
    tls: Tls | None = None
    page: StatusPage = StatusPage()
    destinations: dict[Name, _Destination] = {}
    rules: Annotated[tuple[Rule, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _names_fit(self) -> Self:
        names = [rule.name for rule in self.rules]
        if len(set(names)) < len(names):
            raise ValueError("two rules have one name")
        for rule in self.rules:
            unknown = [name for name in rule.send_to if name not in self.destinations]
            if unknown:
                raise ValueError(f"rule '{rule.name}' sends to '{unknown[0]}', which is no destination")
        dimse = [d for d in self.destinations.values() if isinstance(d, DimseDestination)]
        if self.tls is None and any(one.tls for one in dimse):
            raise ValueError("a destination asks for tls, for which the node has no certificate (key tls)")
        return self


def read_settings(path: Path) -> NodeSettings:
    """A node's settings; relative paths in them are relative to the file's folder.

    Raises:
        SettingsError: no such file, or one line with all its problems.
    """
    try:
        data = parse_yaml(read_file(path, MAX_FILE_BYTES).decode())
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, ValueError, ArithmeticError, RecursionError) as error:
        raise SettingsError(f"{path}: no valid YAML ({' '.join(str(error).split())[:200]})") from error
    if not isinstance(data, dict):
        raise SettingsError(f"{path}: settings are a mapping of keys, got {short(data)}")
    try:
        found = NodeSettings.model_validate(data)
    except ValidationError as error:
        raise SettingsError(f"{path}: {describe(error, NodeSettings, data)}") from error
    return _placed(found, path.absolute().parent)


def _placed(settings: NodeSettings, folder: Path) -> NodeSettings:
    """The settings with absolute paths."""

    def absolute(path: Path) -> Path:
        return folder / path.expanduser()

    tls = settings.tls
    if tls is not None:
        parts = {name: absolute(path) for name, path in tls}
        tls = Tls(**parts)
    rules = tuple(
        rule.model_copy(update={"model": str(absolute(Path(rule.model)))})
        if is_model(absolute(Path(rule.model)))
        else rule
        for rule in settings.rules
    )
    return settings.model_copy(update={"folder": absolute(settings.folder), "tls": tls, "rules": rules})
