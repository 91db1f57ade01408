"""Turns to ask of an engine, from conversations driven by hand."""

from agentvision.engine.types import Ask

from ..policies.policy_cases import Talk


def ask_of(talk: Talk, **changes) -> Ask:
    codec = talk.codec
    values = {
        "session": talk.session,
        "group": talk.group,
        "turn": talk.turns,
        "segments": talk.segments,
        "store": talk.store,
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": 0,
        "max_tokens": 12,
        "seed": talk.seed,
        "stop_ids": codec.stop_ids,
        "banned_ids": codec.banned_ids,
    }
    return Ask(**values | changes)
