"""What enters the sites of the towers, for what is computed from it before the first step."""

import copy
from collections.abc import Callable, Iterable
from dataclasses import replace

import torch
from torch import Tensor

from harness.fitting.model import Model, check_sites
from harness.fitting.texts import CHUNK_TEXTS, Texts, text_features
from harness.towers.edit import Edit, Rows, SiteContext
from harness.towers.tower import Site

See = Callable[[Site, Tensor], None]


class Watched(Edit):
    """What is inserted at a site, if anything; `see` is shown what enters there."""

    def __init__(self, edit: Edit | None, see: See, needed: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.edit, self.see, self.needed = edit, see, needed

    def forward(self, x: Tensor, y: Tensor, at: SiteContext) -> Tensor:
        ids = at.rows.ids
        if x.ndim == 2:
            self.see(at.site, x)
        elif ids is None:
            self.see(at.site, x.flatten(0, 1))
        else:  # what no feature depends on counts for nothing
            words = torch.arange(ids.shape[1], device=ids.device)
            words = words < self.needed(ids).to(ids.device)[:, None]  # [R, L]
            self.see(at.site, x[:, : ids.shape[1]][words])
        return y if self.edit is None else self.edit(x, y, at)


@torch.no_grad()
def show_inputs(
    model: Model,
    sites: Iterable[Site],
    see: See,
    images: Callable[[Model], Iterable[Tensor]],
    prompts: Texts,
) -> None:
    """Calls see(site, x [tokens, D]) with what enters some sites, part by part, while images (what
    the `prefix` of a model made of them) and prompts pass through the towers once.

    Raises:
        HarnessError: a site that the backbone lacks.
    """
    sites = list(sites)
    check_sites(model.clip, model.method, sites)
    watching = copy.copy(model)
    needed = model.clip.text.needed
    watching.edits = model.edits | {
        site: Watched(model.edits.get(site), see, needed) for site in sites
    }
    if any(site.startswith("image.") for site in sites):
        for x in images(watching):
            numbers = torch.arange(len(x), device=x.device)
            watching.rest(model.clip.image, x, x, Rows(numbers, len(x), False, ()))
    if any(site.startswith("text.") for site in sites):
        parts = prompts.ids.split(CHUNK_TEXTS)
        x = torch.cat([watching.prefix(model.clip.text, part) for part in parts])
        text_features(watching, replace(prompts, x=x, shared=0))
