"""The command ``mmshared``: ``mmshared TOOL ...`` runs a tool with its own options."""

import ast
import sys
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path

USAGE = """usage: mmshared TOOL [options of the tool]

Parameter sharing for MMDetection and MMPretrain. `mmshared TOOL --help` lists the options of a tool. The beginning of
a tool's name is enough if no other begins with it. Configs are files, or names: mmshared::faster_rcnn_r50_shared.py.

tools:
"""


def find_tools() -> dict[str, Path]:
    """The tools by the names of their files, with dashes: those of a clone, or of mmshared as it is installed."""
    package = find_spec('mmshared').submodule_search_locations[0]  # this does not import it
    folder = Path(package, '.mim', 'tools').resolve()
    files = (path for path in folder.rglob('*.py') if path.parent.name != __package__)
    return {path.stem.replace('_', '-'): path for path in sorted(files, key=lambda path: path.stem)}


def summary(tool: Path) -> str:
    """The first line of a tool's docstring."""
    return ast.get_docstring(ast.parse(tool.read_text(encoding='utf-8'))).splitlines()[0]


def main() -> None:
    tools = find_tools()
    given, *arguments = sys.argv[1:] or ['--help']
    if given in ('-h', '--help'):
        width = max(map(len, tools))
        print(USAGE + '\n'.join(f'  {name:{width}}  {summary(path)}' for name, path in tools.items()))
        return
    found = [given] if given in tools else [name for name in tools if name.startswith(given)]
    if not found:
        raise SystemExit(f'mmshared: there is no tool {given}: mmshared --help lists them.')
    if len(found) > 1:
        raise SystemExit(f'mmshared: {given} may be {" or ".join(found)}.')
    sys.argv = [f'mmshared {found[0]}', *arguments]  # unlike runpy, this leaves the name of the command in the usage
    spec = spec_from_file_location('__main__', tools[found[0]])
    sys.modules['__main__'] = module_from_spec(spec)
    spec.loader.exec_module(sys.modules['__main__'])
