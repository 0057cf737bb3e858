"""Three short animated films, drawn and sounded by code, with everything that is true of them.

render_films("films")        # paper_boat.mp4, fallen_star.mp4, snow_portrait.mp4 and their side files
load_truth("films/paper_boat.mp4").mask(200, "mina")
"""

from .render import FILMS, frame, render_film, render_films
from .truth import Truth, load_truth

__all__ = ["FILMS", "Truth", "frame", "load_truth", "render_film", "render_films"]
