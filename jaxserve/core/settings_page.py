"""`docs/settings.md`, from the settings themselves: `python -m jaxserve.core.settings_page > docs/settings.md`."""

from itertools import groupby

from jaxserve.core.config import all_settings
from jaxserve.core.settings import Setting

_HEAD = """\
# Settings

Each name is a key of its section in a TOML file, a keyword of `LLM(...)`, and a flag (`max_num_seqs` is
`--max-num-seqs`). Flags go over the file. Those of `[server]` and `[batches]` are flags of `jaxserve serve` alone, and
no keywords. This page is generated: `python -m jaxserve.core.settings_page`.

Some settings count only with another one, replace others, or are bounded by one: their lines end in that. A setting
left without work (`chunk_size` with `policy = "continuous"`, say) is no error, since a file may serve several policies;
but the command line names it on standard error, `LLM(...)` in a warning, with the why.
"""


def page() -> str:
    parts = [_HEAD]
    for section, settings in groupby(all_settings(), key=lambda setting: setting.section):
        parts.append(f"\n## [{section}]\n\n| setting | default | meaning |\n| --- | --- | --- |\n")
        parts.extend(_row(setting) for setting in settings)
    return "".join(parts)


def _row(setting: Setting) -> str:
    default = "none" if setting.default is None else "chosen" if setting.default == () else repr(setting.default)
    return f"| `{setting.name}` | {default} | {setting.meaning} |\n"


if __name__ == "__main__":
    print(page(), end="")
