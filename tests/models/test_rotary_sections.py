"""Three rows of positions, mixed by sections as transformers mixes them."""

from __future__ import annotations

import pytest
import torch
from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLTextConfig
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLRotaryEmbedding as Rotary
from transformers.models.qwen2_vl.modeling_qwen2_vl import apply_rotary_pos_emb
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLTextConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextRotaryEmbedding
from vlmbatch_kernels.rotary import apply_rotary

from vlmbatch.errors import CheckpointError
from vlmbatch.models.json_fields import JsonFields
from vlmbatch.models.layers import RotaryTable
from vlmbatch.models.text_config import RopeConfig, parse_text_config

HEAD_DIM = 16
SECTIONS = (3, 4, 1)


def table(rope: RopeConfig) -> RotaryTable:
    made = RotaryTable(HEAD_DIM, 64, rope)
    made.fill_buffers(torch.device("cpu"), torch.float32)
    return made


def test_queries_turn_as_those_of_qwen() -> None:
    generator = torch.Generator().manual_seed(1)
    rope = RopeConfig(sections=SECTIONS)
    positions = torch.randint(64, (3, 9), generator=generator)
    query = torch.randn(9, 2, HEAD_DIM, generator=generator)
    parameters = {"rope_type": "default", "rope_theta": rope.theta, "mrope_section": SECTIONS}
    config = Qwen2VLTextConfig(
        hidden_size=2 * HEAD_DIM, num_attention_heads=2, rope_parameters=parameters
    )
    their_cos, their_sin = Rotary(config)(query, positions[:, None])
    theirs, _ = apply_rotary_pos_emb(
        query.transpose(0, 1)[None], query.transpose(0, 1)[None], their_cos, their_sin
    )
    cos, sin = table(rope)(positions)
    assert cos.is_contiguous() and sin.is_contiguous()
    torch.testing.assert_close(apply_rotary(query, cos, sin), theirs[0].transpose(0, 1))


@pytest.mark.parametrize("sections", [(24, 20, 20), (12, 26, 26), (64, 0, 0), (30, 20, 14)])
def test_interleaved_sections_are_those_of_qwen3(sections: tuple[int, ...]) -> None:
    positions = torch.randint(64, (3, 9), generator=torch.Generator().manual_seed(1))
    parameters = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": list(sections)}
    theirs = Qwen3VLTextRotaryEmbedding(Qwen3VLTextConfig(head_dim=128, rope_parameters=parameters))
    their_cos, _ = theirs(torch.empty(0), positions[:, None])
    rope = RopeConfig(1e4, sections=sections, interleaved=True)
    ours = RotaryTable(128, 64, rope)
    ours.fill_buffers(torch.device("cpu"), torch.float32)
    torch.testing.assert_close(ours(positions)[0][:, 0], their_cos[0])


def test_three_equal_rows_are_one() -> None:
    positions = torch.tensor([0, 5, 63, 7])
    mixed, plain = (
        table(RopeConfig(sections=SECTIONS))(each) for each in (positions.expand(3, -1), positions)
    )
    assert all(map(torch.equal, mixed, plain))


@pytest.mark.parametrize("sections", [[8], [3, 4, 2], [-1, 5, 4], [4, 4]])
def test_sections_that_do_not_fill_a_head_are_refused(sections: list[int]) -> None:
    rope = {"rope_type": "default", "mrope_section": sections}
    fields = {"head_dim": HEAD_DIM, "rope_scaling": rope}
    with pytest.raises(CheckpointError, match=r"mrope_section is .*half the head size 16"):
        parse_text_config(JsonFields(fields, "config.json: text_config"))
