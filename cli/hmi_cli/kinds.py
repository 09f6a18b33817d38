"""The kinds a user can name on the command line, with their short names, as kubectl knows them."""

from dataclasses import dataclass

from hmi_cli.errors import usage_error


@dataclass(frozen=True)
class Kind:
    """A resource kind and what it is called where."""

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
    """Return the kind that a word names: its kind, plural, singular or short name, in any case."""
    lowered = word.lower().removesuffix(".hmi.dev")
    for kind in KINDS:
        if lowered in (kind.plural, kind.singular, kind.short):
            return kind
    known = ", ".join(f"{kind.plural} ({kind.short})" for kind in KINDS)
    raise usage_error(f'there is no resource type "{word}"', hint=f"known types: {known}, all")


def find_kinds(word: str) -> tuple[Kind, ...]:
    """Return the kinds that a word names; ``all`` names every one."""
    return KINDS if word.lower() == "all" else (find_kind(word),)


def split_target(target: str, name: str | None) -> tuple[str, str | None]:
    """Read ``dom NAME`` and ``dom/NAME`` alike."""
    word, slash, inline = target.partition("/")
    if slash and name is not None:
        raise usage_error(f'"{target}" names a resource already; drop "{name}"')
    return word, inline if slash else name
