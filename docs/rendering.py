"""What Sphinx, myst-nb and the theme lack: folded answers, the alt text that a notebook stores with a figure, and the level
of the headings in the list of pages."""

import re

from docutils import nodes
from docutils.parsers.rst import directives
from myst_nb.core.render import NbElementRenderer
from sphinx.util.docutils import SphinxDirective


class fold(nodes.General, nodes.Element):
    """A folded answer: <details>. Its text is searched like any other."""


class fold_title(nodes.General, nodes.TextElement):
    pass


class Fold(SphinxDirective):
    """```{fold} question``` with the answer as its content; `:name:` makes it a target of links."""

    required_arguments = 1
    final_argument_whitespace = True
    has_content = True
    option_spec = {"name": directives.unchanged}  # noqa: RUF012

    def run(self):
        texts, messages = self.parse_inline(self.arguments[0])
        title, answer = fold_title("", "", *texts), fold()
        answer += [title, *self.parse_content_to_nodes()]
        self.add_name(answer)
        return [answer, *messages]


def with_alt_text(render_image):
    """myst-nb names a figure by its file; a screen reader wants the text stored beside it."""

    def rendered(self, data):
        images = render_image(self, data)
        stored = data.output_metadata
        if alt := stored.get(data.mime_type, {}).get("alt") or stored.get("alt"):
            for image in images:
                image["alt"] = alt
        return images

    return rendered


def mended(app, page, template, context, doctree):
    """The captions in the list of pages get a level; the rows of a long signature are no definitions without terms."""
    tree = context.get("furo_navigation_tree", "")
    context["furo_navigation_tree"] = tree.replace('role="heading"', 'role="heading" aria-level="2"')
    if "body" in context:
        context["body"] = SIGNATURE_ROWS.sub(signature_rows, context["body"])


SIGNATURE_ROWS = re.compile(r'<dl>\s*((?:<dd><em class="sig-param.*?</dd>\s*)+)</dl>', re.DOTALL)


def signature_rows(match: re.Match) -> str:
    rows = match[1].replace("<dd>", '<span class="sig-row">').replace("</dd>", "</span>")
    return f'<span class="sig-rows">{rows}</span>'


def setup(app):
    app.connect("html-page-context", mended, priority=900)  # after the theme
    if NbElementRenderer.render_image.__name__ != "rendered":
        NbElementRenderer.render_image = with_alt_text(NbElementRenderer.render_image)

    def opens(tag):
        return lambda writer, node: writer.body.append(writer.starttag(node, tag, ""))

    def closes(tag):
        return lambda writer, node: writer.body.append(f"</{tag}>\n")

    app.add_node(fold, html=(opens("details"), closes("details")))
    app.add_node(fold_title, html=(opens("summary"), closes("summary")))
    app.add_directive("fold", Fold)
    return {"parallel_read_safe": True}
