"""The words that are printed on pages."""

from __future__ import annotations

_LIST = """
apple arm bank bed bell bird boat book box bread cake car cat chair city cloud coat cup desk dog
door dream ear egg farm fire fish fork game glass gold hand hat hill horse house key king lake
lamp leaf lion map milk moon music night park piano queen rain river road rose ship shoe snow
soup star sun table tree water world
"""
WORDS = tuple(_LIST.split())
