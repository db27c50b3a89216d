"""Conversations as text: the shapes of real templates, another library's rendering of them, and templates that attack."""

import json

import pytest
import tokenizers
from tokenizers import models, pre_tokenizers

from minirl.chat import encode, render
from minirl.tokenizer import Tokenizer, train_bpe

pytest.importorskip("jinja2")

# Four shapes that real models use, written for these tests.
CHATML = """\
{%- if messages[0]['role'] == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
{%- else %}
    {{- '<|im_start|>system\\nYou are helpful.<|im_end|>\\n' }}
{%- endif %}
{%- if tools %}
    {%- for tool in tools %}
        {{- tool | tojson }}
    {%- endfor %}
{%- endif %}
{%- set ns = namespace(turns=0) %}
{%- for message in messages %}
    {%- if message.role == 'system' and loop.first %}{% continue %}{% endif %}
    {%- set ns.turns = ns.turns + 1 %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content.strip() + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}
"""
LLAMA3 = """\
{{- bos_token }}
{%- if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}
{{- '<|start_header_id|>system<|end_header_id|>\\n\\nToday Date: ' ~ date_string ~ '<|eot_id|>' }}
{%- for message in messages %}
    {{- '<|start_header_id|>' ~ message['role'] ~ '<|end_header_id|>\\n\\n' ~ message['content'] | trim ~ '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}
"""
DEEPSEEK = """\
{{ bos_token }}{% for message in messages %}
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('roles must alternate: user, assistant, user ...') }}
{% endif %}
    {% if message['role'] == 'user' %}
{{ 'User: ' + message['content'] + '\\n' }}
{% else %}
Assistant: {% generation %}{{ message['content'] + eos_token }}{% endgeneration %}
{% endif %}
{% endfor %}
{% if add_generation_prompt %}Assistant:{% endif %}
"""
SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nYou are small.<|im_end|>\\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
TEMPLATES = {"chatml": CHATML, "llama3": LLAMA3, "deepseek": DEEPSEEK, "smollm2": SMOLLM2}

HI = [{"role": "user", "content": " Hi! "}]
TALK = [*HI, {"role": "assistant", "content": "Hello."}, {"role": "user", "content": "Who is 'Zoë'? <b>"}]
SYSTEM = [{"role": "system", "content": "Be brief."}, *TALK]


def tokenizer_with(template: str | None) -> Tokenizer:
    backend = tokenizers.Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1, "?": 2}, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return Tokenizer(backend, eos="</s>", bos="<s>", chat_template=template)


def shown(template: str, messages=HI, **given) -> str:
    return render(tokenizer_with(template), messages, **given)


# What the templates say


def test_chatml_by_hand():
    start = "<|im_start|>system\nYou are helpful.<|im_end|>\n<|im_start|>user\nHi!<|im_end|>\n"
    assert shown(CHATML) == start + "<|im_start|>assistant\n"
    assert shown(CHATML, add_generation_prompt=False) == start
    thinking = shown(CHATML, variables={"enable_thinking": False})
    assert thinking == start + "<|im_start|>assistant\n<think>\n\n</think>\n\n"
    system = shown(CHATML, SYSTEM)
    assert system.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi!<|im_end|>\n")
    assert system.count("<|im_start|>") == 5
    tool = {"name": "add", "text": "<é>"}
    assert '{"name": "add", "text": "<é>"}' in shown(CHATML, variables={"tools": [tool]})  # no escapes for HTML


def test_the_other_shapes_by_hand():
    date = {"date_string": "26 Jul 2024"}
    assert shown(LLAMA3, variables=date) == (
        "<s><|start_header_id|>system<|end_header_id|>\n\nToday Date: 26 Jul 2024<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHi!<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    assert shown(DEEPSEEK, TALK) == ("<s>User:  Hi! \n\nAssistant: Hello.</s>User: Who is 'Zoë'? <b>\n\nAssistant:")
    assert shown(SMOLLM2).endswith("<|im_start|>user\n Hi! <|im_end|>\n<|im_start|>assistant\n")


def test_today_is_a_date():
    import datetime

    days = {datetime.date.today() + datetime.timedelta(days=n) for n in (0, 1)}  # midnight may come in between
    assert any(f"Today Date: {day:%d %b %Y}<" in shown(LLAMA3) for day in days)


@pytest.mark.parametrize("add_generation_prompt", [False, True])
@pytest.mark.parametrize("messages", [HI, TALK, SYSTEM], ids=["one", "three", "system"])
@pytest.mark.parametrize("name", TEMPLATES)
def test_transformers_renders_the_same(name, messages, add_generation_prompt):
    transformers = pytest.importorskip("transformers")
    if name == "deepseek" and messages is SYSTEM:
        pytest.skip("this template refuses a system message")
    ours = tokenizer_with(TEMPLATES[name])
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_object=ours.backend, bos_token="<s>", eos_token="</s>")
    variables = {"date_string": "26 Jul 2024", "enable_thinking": False, "tools": [{"name": "f", "x": [1, None]}]}
    expected = theirs.apply_chat_template(
        messages,
        chat_template=TEMPLATES[name],
        tokenize=False,
        add_generation_prompt=add_generation_prompt,
        **variables,
    )
    got = render(ours, messages, add_generation_prompt=add_generation_prompt, variables=variables)
    assert got == expected and "Hi!" in got


def test_encode_knows_the_special_tokens():
    tokenizer = train_bpe(["user assistant Hi! Hello."] * 5, 280, eos="<|im_end|>")
    tokenizer.chat_template = "{% for m in messages %}{{ m.role + ': ' + m.content + '<|im_end|>' }}{% endfor %}"
    ids = encode(tokenizer, TALK, add_generation_prompt=False)
    assert ids.count(tokenizer.eos_id) == 3 and ids[-1] == tokenizer.eos_id
    assert tokenizer.decode(ids) == "user:  Hi! assistant: Hello.user: Who is 'Zoë'? <b>"


def test_the_messages_are_not_changed():
    messages = [dict(message) for message in TALK]
    with pytest.raises(ValueError, match="chat_template"):
        shown("{% set _ = messages.append(1) %}", messages)
    assert messages == TALK


# Where a template stands


def test_a_template_is_kept(tmp_path):
    tokenizer_with(CHATML).save(tmp_path / "one")
    assert Tokenizer.load(tmp_path / "one").chat_template == CHATML
    assert render(tmp_path / "one", TALK) == render(str(tmp_path / "one"), TALK) == shown(CHATML, TALK)
    tokenizer_with(None).save(tmp_path / "none")
    assert "chat_template" not in (tmp_path / "none" / "tokenizer_config.json").read_text()
    assert Tokenizer.load(tmp_path / "none").chat_template is None


def test_the_places_where_others_put_it(tmp_path):
    tokenizer_with("old").save(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    config = json.loads(path.read_text())
    several = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "plain"}]
    path.write_text(json.dumps(config | {"chat_template": several}))
    assert render(tmp_path, HI) == "plain"
    path.write_text(json.dumps(config | {"chat_template": several[:1]}))
    assert Tokenizer.load(tmp_path).chat_template is None
    (tmp_path / "chat_template.jinja").write_text(DEEPSEEK, encoding="utf-8")
    assert render(tmp_path, HI) == shown(DEEPSEEK)


def test_transformers_reads_the_template_that_is_saved(tmp_path):
    transformers = pytest.importorskip("transformers")
    tokenizer_with(CHATML).save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs.apply_chat_template(TALK, tokenize=False, add_generation_prompt=True) == shown(CHATML, TALK)
    theirs.save_pretrained(tmp_path / "back")
    assert render(tmp_path / "back", TALK) == shown(CHATML, TALK)


# What is refused


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "^messages: wanted a list of at least one"),
        ("Hi", "^messages: wanted a list"),
        (["Hi"], '^messages: wanted {"role"'),
        ([{"content": "Hi"}], '^messages: wanted {"role"'),
        ([{"role": "user", "content": open}], "^messages: wanted texts, numbers, lists and dicts"),
        ([{"role": "assistant", "content": "Hi"}], "^messages: the chat template refuses them: roles must alternate"),
    ],
)
def test_bad_messages_are_named(messages, message, unhooked):
    with pytest.raises(ValueError, match=message):
        shown(DEEPSEEK, messages)


def test_bad_templates_are_named():
    with pytest.raises(ValueError, match=r"^tokenizer: has no chat template"):
        shown(None)
    with pytest.raises(ValueError, match=r"^chat_template: line 2: "):
        shown("{% if true %}\n{% endfor %}")
    with pytest.raises(ValueError, match=r"^chat_template: ZeroDivisionError"):
        shown("{{ 1 / 0 }}")
    with pytest.raises(ValueError, match=r"^chat_template: UndefinedError"):
        shown("{{ nothing.here }}")


ATTACKS = {
    "classes": "{{ ''.__class__.__mro__ }}",
    "subclasses": "{{ ().__class__.__base__.__subclasses__() }}",
    "a global's module": "{{ raise_exception.__globals__['os'].system('true') }}",
    "a lambda's module": "{{ dict.__globals__['json'] }}",
    "the date helper": "{{ strftime_now.__code__.co_consts }}",
    "a filter by name": "{{ ('' | attr('__class__')).__mro__ }}",
    "by item": "{{ ''['__class__']['__mro__'] }}",
    "format": "{{ '{0.__class__.__mro__}'.format('') }}",
    "format_map": "{{ '{x.__class__.__mro__}'.format_map({'x': ''}) }}",
    "jinja's own": "{{ cycler.__init__.__globals__ }}",
    "lipsum": "{{ lipsum.__globals__['os'] }}",
    "the template itself": "{{ self.__init__.__globals__ }}",
    "a namespace": "{% set ns = namespace(__class__=1) %}{{ ns }}",
    "a namespace, set": "{% set ns = namespace() %}{% set ns.__class__ = dict %}{{ ns }}",
    "a namespace's class": "{{ namespace.__init__.__globals__ }}",
    "changing a list": "{% set _ = messages.clear() %}",
    "changing a dict": "{{ messages[0].update({'role': 'system'}) }}",
    "another file": "{% include '/etc/passwd' %}",
    "another file, imported": "{% import '/etc/passwd' as x %}",
    "another file, extended": "{% extends '/etc/passwd' %}",
    "a method's frame": "{{ messages.append.__self__ }}{{ messages.append.__self__.x.y }}",
    "a long range": "{{ range(10000000) | list }}",
}


@pytest.mark.parametrize("name", ATTACKS)
def test_templates_stay_in_their_sandbox(name):
    with pytest.raises(ValueError, match=r"^chat_template: "):
        shown(ATTACKS[name])
