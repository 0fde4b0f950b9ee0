"""Passwords, tokens and signatures inside URLs: cut out before a URL is stored, logged or shown."""

import os
import re

# Names of parameters of a query, without regard to case, `-` and `_`.
_PREFIXES = ("xamz", "xgoog", "xoss", "xcos", "xms", "xobs")
_NAMES = frozenset(
    (
        *("accesskey", "accesskeyid", "accesstoken", "apikey", "auth", "authkey", "authorization", "authtoken"),
        *("awsaccesskeyid", "bearer", "clientsecret", "credential", "credentials", "expires", "googleaccessid", "hash"),
        *("hdnea", "hdnts", "hmac", "jwt", "key", "keypairid", "ossaccesskeyid", "pass", "passwd", "password"),
        *("policy", "pwd", "secret", "secretkey", "securitytoken", "session", "sessionid", "sessiontoken"),
        *("sharedaccesssignature", "sig", "sign", "signature", "token"),
    )
)
# Of Azure; secret beside a `sig` only.
_AZURE = frozenset(
    ("se", "si", "sip", "ske", "skoid", "sks", "skt", "sktid", "skv", "sp", "spr", "sr", "srt", "ss", "st")
)
_URL = re.compile(r"(?<![A-Za-z0-9+.\-])[A-Za-z][A-Za-z0-9+.\-]{0,30}://[^\s<>\"\x00-\x1f]+")
_AFTER_URL = "'\"()[]{},.;:!…"  # punctuation of the sentence and not of the URL
_CHAIN = re.compile(r"::(?=[A-Za-z][A-Za-z0-9+.\-]{0,30}://)")  # of file systems, such as zip://a.mp4::http://…
_USER = re.compile(r"://[^/?#]*@")
_USER_IN_QUERY = re.compile(r"://[^/?#&;]*@")
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")  # of the environment
_BARE = re.compile(
    r"(?i)\b(X-(?:Amz|Goog|Oss|Ms)-(?:Signature|Credential|Security-Token)|Signature|AccessKeyId|sig|access_token|"
    r"api_?key|client_secret|password)=[^&\s'\"<>]+"
)


def without_secrets(url: str) -> str:
    """A URI without user name, password, and the parameters that hold keys, tokens and signatures.

    A URI without any of these is returned unchanged, so that the same file keeps the same name when only its signature
    changes.
    """
    if len(links := _CHAIN.split(url)) > 1:
        return "::".join(map(without_secrets, links))
    scheme, separator, rest = url.partition("://")
    if not separator:
        return url
    inner, fragment_sign, fragment = rest.partition("#")
    before, question, query = inner.partition("?")
    host, slash, path = before.partition("/")
    host = host.rpartition("@")[2]
    if "://" in path:  # a chain of file systems, or a URL that is part of a path
        path = _USER.sub("://", path)
    query = _public(_USER_IN_QUERY.sub("://", query))
    if "://" in fragment:
        fragment = without_secrets(fragment)
    elif "=" in fragment:
        fragment = _public(fragment)
    end = (question + query if query else "") + (fragment_sign + fragment if fragment else "")
    return f"{scheme}://{host}{slash}{path}{end}"


def text_without_secrets(text: str) -> str:
    """A message in which every URL is as `without_secrets` gives it."""
    if "=" not in text and "@" not in text:
        return text
    return _BARE.sub(r"\1=…", _URL.sub(_shortened, text))


def check_public(url: str) -> str:
    """A URL or path of a setting, unchanged. Settings are kept by Prefect, Ray and MLflow, and are shown to many.

    Raises:
        ValueError: it contains a password, key or signature, and not as the name of an environment variable.
    """
    if _VARIABLE.fullmatch(url) or without_secrets(url).rstrip("?#") == url.rstrip("?#"):
        return url
    raise ValueError(
        "the URL contains a user name, password, key or signature, which would be kept with the settings of the run: "
        "store the whole URL in an environment variable and give '${NAME}'"
    )


def from_environment(url: str) -> str:
    """The URL or path of a setting; for `${NAME}`, the value of the environment variable.

    Raises:
        ValueError: the variable is not set.
    """
    name = _VARIABLE.fullmatch(url)
    if not name:
        return url
    if not (value := os.environ.get(name[1], "")):
        raise ValueError(
            f"the environment variable {name[1]} is not set: set it where the command runs, and on every node of the "
            "Ray cluster"
        )
    return value


def _shortened(match: re.Match[str]) -> str:
    url = match[0]
    stop = len(url.rstrip(_AFTER_URL))
    return without_secrets(url[:stop]) + url[stop:]


def _public(query: str) -> str:
    """The parameters that are not secret, in their order."""
    parts = re.split(r"([&;])", query)
    names = [_plain(part.partition("=")[0]) for part in parts[::2]]
    secret = [name in _NAMES or name.startswith(_PREFIXES) or "token" in name or "secret" in name for name in names]
    if "sig" in names:
        secret = [is_secret or name in _AZURE or name == "sv" for is_secret, name in zip(secret, names, strict=True)]
    if not any(secret):
        return query
    return "&".join(part for part, is_secret in zip(parts[::2], secret, strict=True) if part and not is_secret)


def _plain(name: str) -> str:
    return re.sub(r"[-_.]|%[0-9A-Fa-f]{2}|^amp$", "", name.lower()).removeprefix("amp;")
