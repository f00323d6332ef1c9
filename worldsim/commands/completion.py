"""Completion of verbs and options in a shell: `worldsim --print-completion bash`."""

from __future__ import annotations

from collections.abc import Iterable

SHELLS = ("bash", "zsh")
START = 2  # how many words a verb has at most


def completion(shell: str, verbs: Iterable[str]) -> str:
    """Write the script that a shell reads once. Options are those that `--help` of a verb names; else files."""
    words = [verb.split() for verb in verbs]
    first = " ".join(dict.fromkeys(parts[0] for parts in words))
    inner: dict[str, list[str]] = {}
    for parts in words:
        if len(parts) == START:
            inner.setdefault(parts[0], []).append(parts[1])
    cases = "\n".join(f'      {verb}) words="{" ".join(rest)}" ;;' for verb, rest in inner.items())
    plain = " ".join(parts[0] for parts in words if len(parts) == 1)
    head = "autoload -U +X bashcompinit && bashcompinit\n" if shell == "zsh" else ""
    return f"""{head}_worldsim() {{
  local now="${{COMP_WORDS[COMP_CWORD]}}" words=""
  if [ "$COMP_CWORD" = 1 ]; then
    words="{first} --help --version"
  elif [ "$COMP_CWORD" = 2 ] && [[ "$now" != -* ]]; then
    case "${{COMP_WORDS[1]}}" in
{cases}
    esac
  fi
  if [[ "$now" == -* ]] && [ "$COMP_CWORD" -gt 1 ]; then
    local verb="${{COMP_WORDS[1]}}"
    [[ " {plain} " == *" $verb "* ]] || verb="$verb ${{COMP_WORDS[2]}}"
    words="$(worldsim $verb --help 2>/dev/null | grep -o -- '--[a-z0-9-]*' | sort -u)"
  fi
  COMPREPLY=($(compgen -W "$words" -- "$now"))
}}
complete -o default -F _worldsim worldsim
"""
