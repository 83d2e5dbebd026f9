"""Numbers that others have printed, each under the metric that it measures, with what a reader must know of it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """One row of a paper. `scores`: metric of ours → (mean, sd or None)."""

    corpus: str
    method: str
    scores: dict[str, tuple[float, float | None]]
    note: str = ""


AER_LLM = "AER-LLM prints the distance √JS in nats under the name of JS; here it stands under that name."
AER_LLM_MSP = AER_LLM + " Its MSP-Podcast task has 4 classes, not 8."
EMO_SUPERB = "EMO-SUPERB's F1 binarises prediction and label at 1/C before the macro F1."
EMO_ENT = "The ACC that Emo_ent prints is the unweighted average recall."
AMBER2 = (
    "AmbER²'s F1 is .695 in the paper's Table 4 and .675 in its Table 5. Its +20.3 % BC is against AER-LLM few-shot; "
    "against CB-CE it is +2.7 %."
)


def _row(
    corpus: str,
    method: str,
    js: float,
    bc: float,
    r2: float,
    f1: float,
    wf1: float,
    acc: float,
    *sd: float,
    note: str = "",
) -> Published:
    names = ("js", "bc", "r2", "macro_f1", "weighted_f1", "accuracy")
    return Published(
        corpus, method, dict(zip(names, zip((js, bc, r2, f1, wf1, acc), sd, strict=True), strict=True)), note
    )


# Tables 1 to 5 of the paper, and of the work that it compares with
PUBLISHED = (
    _row("iemocap", "CB-CE text", .302, .723, .540, .581, .574, .571, .001, .001, .001, .007, .005, .006),
    _row("iemocap", "CB-CE audio", .275, .747, .526, .654, .538, .544, .004, .003, .003, .004, .006, .006),
    _row("iemocap", "CB-CE audio + text", .216, .803, .628, .690, .655, .654, .001, .001, .001, .003, .003, .003),
    Published("iemocap", "AER-LLM zero-shot", {"js_distance_nats": (.47, None), "bc": (.51, None), "r2": (.51, None),
              "accuracy": (.434, None), "weighted_f1": (.429, None)}, AER_LLM),
    Published("iemocap", "AER-LLM few-shot", {"js_distance_nats": (.35, None), "bc": (.69, None), "r2": (.59, None),
              "accuracy": (.481, None), "weighted_f1": (.492, None)}, AER_LLM),
    Published("iemocap", "EMO-SUPERB, 9 classes", {"macro_f1_threshold": (.339, None)},
              EMO_SUPERB + " Its .339 is of 9-class IEMOCAP."),
    Published("iemocap", "Emo_ent", {"uar": (.658, None), "macro_f1": (.646, None)}, EMO_ENT),
    _row("iemocap", "AmbER², the paper", .193, .825, .665, .695, .675, .683, .002, .001, .002, .005, .004, .003,
         note=AMBER2),
    _row("msp_podcast", "CB-CE text", .386, .648, .355, .247, .535, .446, .001, .001, .005, .003, .003, .007),
    _row("msp_podcast", "CB-CE audio", .388, .646, .359, .247, .522, .478, .001, .001, .002, .001, .001, .002),
    _row("msp_podcast", "CB-CE audio + text", .368, .664, .378, .276, .552, .473, .003, .000, .002, .001, .002, .003),
    Published("msp_podcast", "AER-LLM zero-shot, 4 classes", {"js_distance_nats": (.45, None), "bc": (.54, None),
              "r2": (.52, None), "accuracy": (.506, None), "weighted_f1": (.505, None)}, AER_LLM_MSP),
    Published("msp_podcast", "AER-LLM few-shot, 4 classes", {"js_distance_nats": (.40, None), "bc": (.61, None),
              "r2": (.56, None), "accuracy": (.556, None), "weighted_f1": (.562, None)}, AER_LLM_MSP),
    Published("msp_podcast", "EMO-SUPERB, 8 classes", {"macro_f1_threshold": (.331, None)}, EMO_SUPERB),
    Published("msp_podcast", "EMO-SUPERB, 16 classes", {"macro_f1_threshold": (.363, None)},
              "EMO-SUPERB's .363, which AmbER² quotes, is of 16 classes; with 8 it is .331."),
    _row("msp_podcast", "AmbER², the paper", .328, .707, .425, .369, .445, .520, .001, .000, .001, .003, .002, .001,
         note=AMBER2),
    Published("crema_d", "EMO-SUPERB", {"macro_f1_threshold": (.672, None)}, EMO_SUPERB),
)  # fmt: skip
