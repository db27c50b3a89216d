"""What the classic interface changes or leaves out, said once and not at every step."""

import sys


class Notes:
    """Each thing is said once to whoever holds these notes. It goes to stderr: a program's own output stays as it was."""

    def __init__(self):
        self.said: set[str] = set()

    def __call__(self, about: str, text: str) -> None:
        if about not in self.said:
            self.said.add(about)
            print(f"minirl.classic: {about}: {text}", file=sys.stderr, flush=True)


loading = Notes()  # for what is opened by name: a policy and its reference need not both say the same


def ignored(keywords: dict, *, quiet: tuple[str, ...] = ()) -> None:
    """Keywords that change nothing here, named in one line."""
    left = sorted(name for name, value in keywords.items() if name not in quiet and value not in (None, False))
    if left:
        loading(", ".join(left), "accepted, and of no effect here")
