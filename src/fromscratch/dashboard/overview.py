"""The first page: what is going on, in runs and studies, and what judges said."""

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from fromscratch.dashboard.figures import Figures, figures_of
from fromscratch.dashboard.judged import JudgedView, judged_of, short
from fromscratch.dashboard.site import Part, Site, html_response
from fromscratch.dashboard.stamps import bodies_of
from fromscratch.dashboard.studies import StudyView, studies_of
from fromscratch.judging.writing import shown


def part(site: Site) -> Part:
    """The first page."""
    figures, studies, judged, bodies = figures_of(site), studies_of(site), judged_of(site), bodies_of(site)

    def read() -> tuple[list[Figures], list[StudyView], list[JudgedView]]:
        views = [view for name in studies.names() if (view := studies.view(name)).recorded or view.problem]
        return figures.all(), sorted(views, key=lambda view: not view.is_running), judged.all()

    def render() -> bytes:
        runs, views, results = read()
        ended = [one for one in runs if not one.is_running]
        return site.render(
            "overview.html",
            path="/",
            exists=site.root.is_dir(),
            running=[one for one in runs if one.is_running],
            others=[one for one in ended if not one.study],
            of_studies=[one for one in ended if one.study],
            studies=views,
            judged=results,
            shown=shown,
            short=short,
        )

    async def show(_request: Request) -> Response:
        return html_response(await bodies.get(("overview",), [""], render))

    return Part((Route("/", show, methods=["GET"]),), entry=("/", "Runs"))
