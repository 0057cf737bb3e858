import torch

from model import QueryAdapter

SMALL = {
    "num_queries": 6,
    "mllm_hidden_size": 32,
    "condition_length": 11,
    "condition_size": 48,
    "hidden_size": 16,
    "num_layers": 3,
    "num_heads": 2,
    "intermediate_size": 24,
}


def test_output_has_the_length_and_width_of_the_condition():
    assert QueryAdapter(**SMALL)(torch.randn(5, 6, 32)).shape == (5, 11, 48)


def test_every_parameter_but_the_input_queries_gets_a_gradient():
    adapter = QueryAdapter(**SMALL)
    adapter(torch.randn(2, 6, 32)).square().sum().backward()
    assert [name for name, p in adapter.named_parameters() if p.grad is None] == ["queries.weight"]


def test_outliers_of_the_language_model_do_not_reach_the_condition():
    adapter, states = QueryAdapter(**SMALL), torch.randn(1, 6, 32)
    assert torch.allclose(adapter(states), adapter(states * 1000), atol=1e-4)


def test_saved_as_safetensors_and_loaded_bit_for_bit(tmp_path):
    adapter = QueryAdapter(**SMALL)
    adapter.save_pretrained(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"config.json", "diffusion_pytorch_model.safetensors"}
    again, states = QueryAdapter.from_pretrained(tmp_path), torch.randn(1, 6, 32)
    assert torch.equal(adapter(states), again(states))
