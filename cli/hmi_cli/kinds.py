"""The resource kinds of the command line, with their short names, as in kubectl."""

from dataclasses import dataclass

from hmi_cli.errors import UsageError


@dataclass(frozen=True)
class Kind:
    """A resource kind and its names."""

    name: str
    plural: str
    singular: str
    short: str

    def __str__(self) -> str:
        return f"{self.singular}.hmi.dev"


DOMAIN = Kind("Domain", "domains", "domain", "dom")
TASK_ADAPTER = Kind("TaskAdapter", "taskadapters", "taskadapter", "ta")
KINDS = (DOMAIN, TASK_ADAPTER)


def find_kind(word: str) -> Kind:
    """Return a kind by its kind, plural, singular or short name, in any case. Raise ``UsageError``."""
    lowered = word.lower().removesuffix(".hmi.dev")
    for kind in KINDS:
        if lowered in (kind.plural, kind.singular, kind.short):
            return kind
    known = ", ".join(f"{kind.plural} ({kind.short})" for kind in KINDS)
    raise UsageError(f'there is no resource type "{word}"', hint=f"known types: {known}, all")


def find_kinds(word: str) -> tuple[Kind, ...]:
    """Return the kinds of a name; ``all`` stands for every kind."""
    return KINDS if word.lower() == "all" else (find_kind(word),)


def split_target(target: str, name: str | None) -> tuple[str, str | None]:
    """Return (type, name) of ``dom NAME`` or ``dom/NAME``."""
    word, slash, inline = target.partition("/")
    if slash and name is not None:
        raise UsageError(f'"{target}" names a resource already; remove "{name}"')
    return word, inline if slash else name
