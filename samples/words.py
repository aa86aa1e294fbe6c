"""The words that are printed on pages."""

from __future__ import annotations

_LIST = """
air answer apple arm autumn bag ball bank basket bed bell bird boat book bottle box branch bread
bridge brother butter cake candle car castle cat chair cheese chicken child church city clock
cloud coat coffee corner cup daughter day desk doctor dog door dream dress ear earth egg evening
eye family farm father field finger fire fish floor flower foot forest fork friend fruit game
garden glass gold grass hand hat head heart hill home honey horse hour house ice island jacket
journey kettle key king kitchen knife ladder lake lamp leaf letter light lion machine map market
meadow milk minute mirror money moon morning mother mountain mouse music name needle nest night
north nose office onion paper park pencil people picture plate pocket potato queen question rain
ribbon river road roof room rose sail salt sand school sea season sheep ship shoe shop silver
sister sky sleep snow soap song soup south spoon spring station stone story street sugar summer
sun table tea teacher thread ticket time tower town train tree uncle valley village voice wall
water weather wheel wind window wine winter woman wood world year
"""
WORDS = tuple(_LIST.split())
