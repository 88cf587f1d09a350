"""Lets mkdocstrings read the roles of our docstrings, which are those of reStructuredText as in OpenMMLab's."""

import re

import griffe

ROLE = re.compile(r':(class|func|meth|attr):`([^`]*)`')


class RestRoles(griffe.Extension):
    """Turns ``:class:`Bank``` into code, and ``:math:`` into a formula."""

    def on_object(self, *, obj, **kwargs):
        if obj.docstring:
            text = re.sub(r':math:`([^`]*)`', r'$\1$', obj.docstring.value)
            text = re.sub(r'^( *)\.\. math:: (.*)$', r'\1$$\2$$', text, flags=re.MULTILINE)
            text = text.replace('``', '`')
            obj.docstring.value = ROLE.sub(lambda role: f'`{role[2].removeprefix("mmshared.")}`', text)
