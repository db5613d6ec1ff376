"""Cases of a manifest: a team's own catalogue, on this machine or on a bucket."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dtc_jax.data.builders.source import Case, Item, Skipped
from dtc_jax.data.images import InputError, read_box, read_mask_levels, read_reference, read_scene
from dtc_jax.data.locations import Location, local_path
from dtc_jax.data.manifest import manifest_lines, parse_case
from dtc_jax.data.records import SPLITS


@dataclass(frozen=True, kw_only=True)
class ManifestSource:
    """The cases of one manifest.

    The training target is `truth`, the photo with the product in it; where a case has none, its `scene` is taken for
    that photo. Mask or box are in its pixels.
    """

    manifest: str
    """Path or URI."""

    def items(self) -> Mapping[str, Sequence[Item]]:
        """The cases by split; a case without one is for training.

        Raises:
            InputError: names the line of the manifest and what is wrong with it. Images are not looked for yet.
        """
        splits: dict[str, list[Item]] = {}
        for number, line in manifest_lines(self.manifest):
            case = parse_case(line, self.manifest, number, check_files=False)
            split = case.split or "train"
            if split not in SPLITS:
                raise InputError(f"{case.where}: split {split!r}: must be one of {', '.join(SPLITS)}")
            # The line itself is a third of what the parsed case takes, and catalogues have millions.
            splits.setdefault(split, []).append(Item(case.id, (number, line)))
        return {split: splits[split] for split in SPLITS if split in splits}

    def open(self, item: Item) -> Case | Skipped:
        """Read one case.

        Raises:
            InputError: one of its files is missing or damaged, or they do not fit together.
        """
        number, line = item.detail
        case = parse_case(line, self.manifest, number, check_files=False)
        target = read_scene(case.scene if case.truth is None else case.truth)
        if case.mask is not None:
            levels = read_mask_levels(case.mask)
        else:
            levels = read_box(case.box or (), (target.shape[0], target.shape[1])) * 255
        assert case.reference is not None  # the manifest was read with references
        return Case(case.id, target, levels, read_reference(case.reference), case.category or "")

    def files(self) -> Iterator[Location]:
        """The manifest, which is read again, and all pictures that it names, as far as they are on this machine.

        Raises:
            InputError: the manifest cannot be read any more.
        """
        yield self.manifest
        for number, line in manifest_lines(self.manifest):
            case = parse_case(line, self.manifest, number, check_files=False)
            for location in (case.scene, case.truth, case.mask, case.reference):
                if location is not None and local_path(location) is not None:
                    yield location

    def describe(self) -> dict[str, Any]:
        """The manifest's name; its licence is the team's own."""
        return {"source": self.manifest}
