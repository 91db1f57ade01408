"""Conversations to run a policy on, and the uncached forward pass to compare with."""

import numpy as np
import torch
from PIL import Image

from agentvision.geometry import Affine
from agentvision.images import ImageStore
from agentvision.policy import Request, SamplingParams
from agentvision.tokens import sampled_mask, trainer_ids
from agentvision.types import ImageSegment, Message, TextSegment, View, ViewPart


class Talk:
    """One rollout, driven by hand: an opening with some images, then the model's turns and replies to them."""

    def __init__(self, codec, *, store=None, images=(), question="What is it?", session="s/0", group="s", seed=0):
        self.codec, self.store = codec, store or ImageStore()
        self.session, self.group, self.seed = session, group, seed
        self.views: tuple[View, ...] = ()
        parts = tuple(ViewPart(self.look(image)) for image in images)
        self.messages: tuple[Message, ...] = (Message("system", ("You see.",)), Message("user", (*parts, question)))
        self.segments = codec.encode_opening(self.messages, self.views)
        self.turns = 0
        self.completions = []

    def look(self, image):
        key = self.store.add(image)
        index = len(self.views) + 1
        tokens = self.codec.vision.tokens(image.size)
        self.views += (View(index, key, key, Affine(), image.size, image.size, tokens, "first_view"),)
        return index

    def request(self, **sampling):
        sampling = {"max_tokens": 12, "seed": self.seed} | sampling
        return Request(
            session=self.session,
            group=self.group,
            messages=self.messages,
            views=self.views,
            segments=self.segments,
            store=self.store,
            sampling=SamplingParams(**sampling),
            turn=self.turns,
        )

    async def turn(self, policy, **sampling):
        completion = await policy.complete(self.request(**sampling))
        self.messages += (Message("assistant", (completion.text,)),)
        self.segments += completion.segments
        self.turns += 1
        self.completions.append(completion)
        return completion

    def reply(self, text="Look again.", image=None):
        parts = (text,) if image is None else (text, ViewPart(self.look(image)))
        self.messages += (Message("user", parts),)
        self.segments += self.codec.encode_next(self.segments, self.messages, self.views)


def picture(seed=0, width=48, height=32):
    """Noise whose sides suit the tiny model's factor of 16."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@torch.no_grad()
def uncached_logprobs(model, codec, talk, *, temperature=1.0):
    """Log-probs of the sampled tokens by one plain forward pass of the library's model over the trainer's stream."""
    ids = torch.tensor([trainer_ids(talk.segments, codec.image_token_id)])
    is_image = [m for s in talk.segments for m in ([1] * s.tokens if isinstance(s, ImageSegment) else [0] * len(s.ids))]
    pixels = [codec.pixels(talk.store, s.image) for s in talk.segments if isinstance(s, ImageSegment)]
    vision = {}
    if pixels:
        vision = {
            "pixel_values": torch.cat([p.values for p in pixels]),
            "image_grid_thw": torch.tensor([p.grid for p in pixels]),
            "mm_token_type_ids": torch.tensor([is_image], dtype=torch.int),
        }
    model.model.rope_deltas = None
    logits = model(input_ids=ids, use_cache=False, **vision).logits[0].float() / (temperature or 1.0)
    logits[:, list(codec.banned_ids)] = -torch.inf
    logprobs = logits.log_softmax(-1)[:-1].gather(1, ids[0, 1:, None])[:, 0]
    return logprobs[torch.tensor(sampled_mask(talk.segments))[1:]]


def recorded_logprobs(talk):
    return torch.tensor([p for s in talk.segments if isinstance(s, TextSegment) and s.logprobs for p in s.logprobs])


def assert_exact(model, codec, talk, *, temperature=1.0):
    assert len(recorded_logprobs(talk)) == sum(len(c.ids) for c in talk.completions)
    expected = uncached_logprobs(model, codec, talk, temperature=temperature)
    torch.testing.assert_close(recorded_logprobs(talk), expected, atol=1e-4, rtol=0)


async def run(talk, policy, turns, *, image_every=True, **sampling):
    for k in range(turns):
        await talk.turn(policy, **({"max_tokens": 4 + 3 * k + talk.seed % 4} | sampling))
        if k + 1 < turns:
            talk.reply(image=picture(100 + talk.seed, width=64) if image_every else None)
