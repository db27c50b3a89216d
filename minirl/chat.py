"""A conversation as the one text a chat model was trained on, written by the model's own template.

    messages = [{"role": "user", "content": "What is the capital of France?"}]
    render(tokenizer, messages)     "<|im_start|>user\\nWhat is the capital of France?<|im_end|>\\n<|im_start|>assistant\\n"
    encode(tokenizer, messages)     its token ids

Each model has its own markers, and answers badly when spoken to with another's. The template is a small program in the
Jinja language that comes with the model's files (tokenizer_config.json or chat_template.jinja), so it is a stranger's: it
runs in Jinja's sandbox and sees plain data and the few helpers that Hugging Face's library gives it, nothing else. It
can still run for ever; take models from people you know.
"""

import datetime
import json
from pathlib import Path

from minirl.tokenizer import Tokenizer

Messages = list[dict]  # {"role": "system" | "user" | "assistant" | ..., "content": text, ...}


def render(
    tokenizer_or_folder: Tokenizer | str | Path,
    messages: Messages,
    *,
    add_generation_prompt: bool = True,
    variables: dict | None = None,
) -> str:
    """The conversation as text; with `add_generation_prompt` it ends where the assistant's answer begins.

    `variables` are what some templates know besides: {"enable_thinking": False}, {"tools": [...]}. Special tokens stand in
    the text, the first one too: encode it with `encode_continuation`, or use `encode`. ValueError: no template, messages
    that the template refuses or that are no plain data, a template that is broken or reaches outside its sandbox.
    """
    sandbox = _sandbox()
    from jinja2.exceptions import SecurityError, TemplateSyntaxError

    tokenizer = tokenizer_or_folder
    if not isinstance(tokenizer, Tokenizer):
        tokenizer = Tokenizer.load(tokenizer)
    if tokenizer.chat_template is None:
        raise ValueError("tokenizer: has no chat template; this model was not trained on conversations")
    tokens = {"bos_token": tokenizer.bos, "eos_token": tokenizer.eos, "pad_token": tokenizer.pad}
    given = {"tools": None, "documents": None} | {name: token for name, token in tokens.items() if token is not None}
    if not isinstance(variables, dict | None):
        raise ValueError(f"variables: wanted a dict or None, got {variables!r:.80}")
    given |= _plain("variables", variables or {})
    given |= {"messages": _checked(messages), "add_generation_prompt": add_generation_prompt}
    try:
        return sandbox.from_string(tokenizer.chat_template).render(given)
    except SecurityError as error:
        raise ValueError(f"chat_template: reaches outside its sandbox: {error}") from None
    except TemplateSyntaxError as error:
        raise ValueError(f"chat_template: line {error.lineno}: {error}") from None
    except Refused as error:
        raise ValueError(f"messages: the chat template refuses them: {error}") from None
    except Exception as error:  # the template is a program: it may divide by zero
        raise ValueError(f"chat_template: {type(error).__name__}: {error}") from error


def encode(
    tokenizer: Tokenizer, messages: Messages, *, add_generation_prompt: bool = True, variables: dict | None = None
) -> list[int]:
    """Token ids of `render`'s text: the prompt of a chat model."""
    text = render(tokenizer, messages, add_generation_prompt=add_generation_prompt, variables=variables)
    return tokenizer.encode_continuation(text)


class Refused(Exception):
    """A template called raise_exception."""


def _checked(messages: Messages) -> Messages:
    if not isinstance(messages, list) or not messages:
        raise ValueError(f"messages: wanted a list of at least one message, got {messages!r}")
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise ValueError(f'messages: wanted {{"role": "user", "content": "..."}}, got {message!r}')
    return _plain("messages", messages)


def _plain(name: str, value):
    """A copy out of lists, dicts, texts and numbers alone: objects have methods, and a template could call them."""
    try:
        return json.loads(json.dumps(value))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: wanted texts, numbers, lists and dicts: {error}") from None


def _sandbox():
    """Jinja's sandbox with the helpers that chat templates expect."""
    try:
        from jinja2.exceptions import SecurityError
        from jinja2.ext import Extension, loopcontrols
        from jinja2.sandbox import ImmutableSandboxedEnvironment
        from jinja2.utils import Namespace
    except ImportError:
        raise ImportError("chat templates want Jinja: pip install jinja2") from None

    class Generation(Extension):
        """{% generation %} marks what the assistant wrote, for loss masks. The text is the same without the mark."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser):
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    class PlainNamespace(Namespace):
        """Jinja's, without names that Python itself reads."""

        def __init__(*args, **kwargs):  # `self` may be one of the names
            for name in dict(*args[1:], **kwargs):
                check_name(name)
            Namespace.__init__(*args, **kwargs)

        def __setitem__(self, name, value):
            check_name(name)
            Namespace.__setitem__(self, name, value)

    def check_name(name):
        if str(name).startswith("_"):
            raise SecurityError(f"a namespace holds no {name!r}")

    def raise_exception(message):
        raise Refused(message)

    def strftime_now(form):
        return datetime.datetime.now().strftime(form)

    def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    sandbox = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    sandbox.filters["tojson"] = tojson  # Jinja's own escapes for HTML
    sandbox.globals |= {"raise_exception": raise_exception, "strftime_now": strftime_now}
    sandbox.globals |= {"namespace": PlainNamespace, "dict": lambda *pairs, **named: dict(*pairs, **named)}
    return sandbox
