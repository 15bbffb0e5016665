"""Start a recipe."""

from __future__ import annotations

from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from qpeft.ui.site import Address, Visit


async def form(visit: Visit) -> Response:
    """Recipes to choose from."""
    control = visit.studio.control
    recipes = await run_in_threadpool(control.recipe_files)
    return visit.render("start", recipes=recipes, folder=str(control.recipes), root=str(visit.studio.folder.root))


async def start(visit: Visit) -> Response:
    """Train the recipe of the form in a new folder."""
    await run_in_threadpool(visit.studio.control.start, visit.form.get("recipe", ""), visit.form.get("folder", ""))
    return visit.see("/")


ADDRESSES = [Address("/start", form, nav="Start a run"), Address("/start", start, method="POST")]
