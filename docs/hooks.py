"""What mkdocs does beside reading docs/en: it takes pages from all over the repository, writes formulas as
MathML, and links images to themselves."""

import html
import re
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r'\]\(([^()\s#]+)')
TO_PAGES = re.compile(r'(\]\((?:\.\./)+)docs/en/')
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)


def linked_files(page):
    """The files of the repository that a page links to."""
    links = (page.parent / link for link in LINK.findall(page.read_text()) if '://' not in link)
    return {link.resolve() for link in links if link.is_file()}


def on_files(files, config):
    """Add the READMEs of projects and configs as pages, and the files that pages link to, at their places in the
    repository. So links between them stay as they are."""
    own = Path(config.docs_dir)
    pages = {*ROOT.glob('projects/*/README.md'), *ROOT.glob('configs/*/README.md'), ROOT / 'CHANGELOG.md'}
    for page in [*pages, *own.rglob('*.md')]:
        pages |= linked_files(page)
    for path in sorted(page for page in pages if own not in page.parents):
        name = path.relative_to(ROOT).as_posix()
        files.append(File(name, str(ROOT), config.site_dir, config.use_directory_urls))
    return files


def on_page_markdown(markdown, page, config, files):
    """Let pages of docs/en link to files of the repository as they do on a forge, ../../configs/..., and those to
    pages of docs/en, which are at the top of the site."""
    if page.file.src_dir != config.docs_dir:
        return TO_PAGES.sub(r'\1', markdown)
    up = '../' * page.file.src_uri.count('/')
    return markdown.replace(f']({up}../../', f']({up}')


def on_page_content(content, page, config, files):
    """Write formulas as MathML, which browsers show without a script, and let an image open in full size."""

    def formula(match):
        display = 'block' if match[2] == '[' else 'inline'
        return convert(html.unescape(match[3]).strip(), display=display)

    content = FORMULA.sub(formula, content)
    return re.sub(r'<img [^>]*src="([^"]*)"[^>]*>', r'<a href="\1">\g<0></a>', content)
