"""Lets mkdocstrings read our docstrings, whose roles and formulas are those of reStructuredText as in OpenMMLab's."""

import re
from functools import partial

import griffe


def link(obj: griffe.Object, role: re.Match) -> str:
    """A name as code that links to its place in the API, if it has one."""
    name = role[1].removeprefix('mmshared.')
    try:
        target = f'mmshared.{name}' if name != role[1] else obj.resolve(name)
    except griffe.NameResolutionError:
        return f'`{name}`'
    return f'<autoref identifier="{target}" optional>`{name}`</autoref>'


class RestRoles(griffe.Extension):
    """Turns ``:class:`Bank``` into a link, and ``:math:`` into a formula."""

    def on_object(self, *, obj: griffe.Object, **kwargs) -> None:
        if obj.docstring:
            text = obj.docstring.value.replace('``', '`')
            text = re.sub(r':math:`([^`]*)`', r'$\1$', text)
            text = re.sub(r'^( *)\.\. math:: (.*)$', r'\1$$\2$$', text, flags=re.MULTILINE)
            obj.docstring.value = re.sub(r':(?:class|func|meth|attr):`([^`]*)`', partial(link, obj), text)
