"""Where the weights that are trained, their averages and the optimizer's state lie: whole on each process, or shared out.

A :class:`Layout` answers for one of three ways, always by parameter: whole, on one process or under DDP (the class itself),
DeepSpeed ZeRO 1 to 3 (:class:`Zero`), PyTorch FSDP2 (:class:`Fsdp2`). Snapshots hold whole float32 tensors by name, put
together one at a time, so a run that was saved in one layout goes on in another, and on another number of processes. What is
put together passes through each process's device, one tensor at once, and stays in the main process's memory until it is
written: 12 bytes for each number that is trained with AdamW, 16 with averages (300 M numbers: 3.4 GiB, 4.5 GiB).

FSDP2 is torch's own ``fully_shard``, on GPUs and CPUs alike. Accelerate's launch configuration asks for it, but accelerate
would quietly leave it out on CPUs, and knows of no frozen weights of another type beside the trained ones.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from typing_extensions import override

from animeshooter_dataset import DataError

COUNT = "step"
"""The state of AdamW that is one number for all of a parameter: how many steps it was trained."""
FSDP_ASKED = {name: os.environ.get(name, "") for name in ("ACCELERATE_USE_FSDP", "FSDP_VERSION", "FSDP_OFFLOAD_PARAMS")}
"""What accelerate's launcher says of FSDP, before it is hidden from accelerate itself."""


def fsdp_asked() -> bool:
    """Whether FSDP2 was asked for; from then on accelerate takes the run for plain DDP, which :class:`Fsdp2` replaces.

    Raises:
        DataError: a kind of FSDP that is not supported was asked for.
    """
    if FSDP_ASKED["ACCELERATE_USE_FSDP"].lower() != "true":
        return False
    if FSDP_ASKED["FSDP_VERSION"] != "2":
        raise DataError("FSDP was asked for in version 1; set fsdp_version to 2, as recipes/launch/fsdp2.yaml does")
    if FSDP_ASKED["FSDP_OFFLOAD_PARAMS"].lower() == "true":
        raise DataError(
            "fsdp_offload_params is not supported; set it to false, or use recipes/launch/zero3.yaml, which can offload"
        )
    os.environ["ACCELERATE_USE_FSDP"] = "false"
    return True


def load_whole() -> None:
    """Have transformers load and make models whole, on each process that asks.

    Under ZeRO-3 accelerate tells it to share out every model as it is made. That draws other random weights than one process
    draws, and a model that only the main process loads waits for the others for ever.
    """
    from transformers.integrations import unset_hf_deepspeed_config

    unset_hf_deepspeed_config()


def layout_of(accelerator: Any) -> Layout:
    """The layout of the processes that were started."""
    if accelerator.state.deepspeed_plugin is not None:
        load_whole()
        return Zero(accelerator)
    if fsdp_asked() and accelerator.num_processes > 1:
        return Fsdp2(accelerator)
    return Layout(accelerator)


class Layout:
    """Where trained weights and optimizer state lie. This one: all of them on each process (one process, or DDP)."""

    sharded = False
    """Whether a process has only a part of something."""
    spreads_frozen = False
    """Whether that goes for frozen weights too: then a part that has any must run on all processes, or on none."""

    def __init__(self, accelerator: Any) -> None:
        self.accelerator = accelerator
        self.optimizer: Any = None
        """The torch optimizer within all wrappers, from :meth:`wrap` on."""

    @property
    def name(self) -> str:
        """For the user."""
        return "DDP" if self.accelerator.num_processes > 1 else "one process"

    def configure(self, train: Any, share: int) -> None:
        """Settle what depends on the settings of training; ``share``: samples of a micro-batch on each process.

        Raises:
            DataError: what was asked for is not supported.
        """

    def wrap(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[Any, Any]:
        """Model and optimizer ready for training; they start from the main process's trained weights."""
        model, wrapped = self.accelerator.prepare(module, optimizer)
        self.optimizer = wrapped.optimizer
        return model, wrapped

    def local(self, parameter: nn.Parameter, kind: str | None = None) -> Tensor:
        """This process's part, in float32 where it is trained: of a parameter, or of the optimizer's state ``kind`` for it."""
        return parameter.data if kind is None else self.optimizer.state[parameter][kind]

    def part(self, parameter: nn.Parameter, whole: Tensor) -> Tensor:
        """This process's part of a whole tensor of the parameter's shape."""
        return whole

    def whole(self, parameter: nn.Parameter, part: Tensor) -> Tensor:
        """The whole tensor that all processes' parts make up; where it is sharded, every process must call it."""
        return part

    def states(self, parameter: nn.Parameter) -> tuple[str, ...]:
        """The kinds of state the optimizer keeps of a parameter; none before the first step."""
        return tuple(self.optimizer.state.get(parameter, ()))

    def put(self, parameter: nn.Parameter, kind: str, whole: Tensor) -> None:
        """Give the optimizer the state ``kind`` of a parameter, of which the whole is at hand."""
        self.optimizer.state[parameter][kind] = self._count(whole) if kind == COUNT else whole.to(parameter.device, copy=True)

    def _count(self, steps: Tensor) -> Tensor:
        """Adam's count of steps, on the device where its variant keeps it."""
        on_device = self.optimizer.defaults.get("fused") or self.optimizer.defaults.get("capturable")
        return steps.to(self.accelerator.device if on_device else "cpu", copy=True)

    def scaler(self) -> dict[str, Any] | None:
        """The state of the loss scaler of fp16, None where there is none."""
        return None if self.accelerator.scaler is None else self.accelerator.scaler.state_dict()

    def load_scaler(self, state: dict[str, Any]) -> None:
        """Go on with such a state; that of another layout's scaler is left aside, and the scale found anew."""
        scaler = self.accelerator.scaler
        if scaler is not None and state.keys() == scaler.state_dict().keys():
            scaler.load_state_dict(state)

    # ---- the same in every layout ----

    @torch.no_grad()
    def weights(self, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
        """Trained weights, whole and copied to the CPU, on the main process; empty elsewhere. Every process must call it."""
        return self.gathered(parameters, {name: self.local(parameter) for name, parameter in parameters.items()})

    @torch.no_grad()
    def gathered(self, parameters: Mapping[str, nn.Parameter], parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Whole tensors of the ``parts`` of parameters, as :meth:`weights` gives them."""
        return dict(self._to_main((name, self.whole(parameters[name], part)) for name, part in parts.items()))

    @torch.no_grad()
    def optimizer_state(self, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
        """The optimizer's state by ``<kind>/<parameter>``, as :meth:`weights`; empty before the first step."""
        named = [(kind, name) for name, parameter in parameters.items() for kind in self.states(parameter)]
        return dict(self._to_main((f"{kind}/{name}", self._state(parameters[name], kind)) for kind, name in named))

    def _state(self, parameter: nn.Parameter, kind: str) -> Tensor:
        part = self.local(parameter, kind)
        return part if kind == COUNT else self.whole(parameter, part)

    def _to_main(self, wholes: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        for name, whole in wholes:
            if self.accelerator.is_main_process:
                yield name, torch.as_tensor(whole).detach().to("cpu", copy=True)

    @torch.no_grad()
    def load_optimizer(self, parameters: Mapping[str, nn.Parameter], tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Give the optimizer what :meth:`optimizer_state` took; ``tensors`` yields the same on every process."""
        for key, whole in tensors:
            kind, _, name = key.partition("/")
            self.put(parameters[name], kind, whole)

    def _start_as_main(self, module: nn.Module) -> dict[str, Tensor]:
        """Give every process the main process's trained weights, as DDP does; returns them, in float32 on the CPU."""
        found = {}
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                sent = parameter.detach().to(self.accelerator.device, copy=True)
                if dist.is_initialized():
                    dist.broadcast(sent, src=0)
                parameter.data.copy_(sent)
                found[name] = sent.float().cpu()
        return found


class Zero(Layout):
    """DeepSpeed: each process has a part of the optimizer's state and float32 weights, with ZeRO-3 of the weights as well.

    DeepSpeed lays all parameters of a group end to end (ZeRO-1 and 2) and gives each process a stretch of it, or cuts each
    parameter into as many equal pieces as there are processes (ZeRO-3), the last one filled up.
    """

    sharded = True

    @property
    def stage(self) -> int:
        """Of ZeRO."""
        return int(self.accelerator.state.deepspeed_plugin.zero_stage)

    @property
    @override
    def name(self) -> str:
        return f"DeepSpeed ZeRO-{self.stage}"

    @property
    def spreads_frozen(self) -> bool:  # type: ignore[override]
        """Under ZeRO-3."""
        return self.stage == 3

    @override
    def configure(self, train: Any, share: int) -> None:
        plugin = self.accelerator.state.deepspeed_plugin
        if not self.stage:
            raise DataError(
                "DeepSpeed with zero_stage 0 shares out nothing; use recipes/launch/ddp.yaml, or zero_stage 1, 2 or 3"
            )
        zero = plugin.deepspeed_config.get("zero_optimization", {})
        places = {(zero.get(f"offload_{what}") or {}).get("device") for what in ("optimizer", "param")}
        if "nvme" in places:
            raise DataError("DeepSpeed's offloading to nvme is not supported; offload to cpu or to none")
        plugin.deepspeed_config |= {
            "train_micro_batch_size_per_gpu": share,  # it would read it from a data loader, which the streams do without
            "gradient_accumulation_steps": train.accumulate,
            "gradient_clipping": train.clip_norm,
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
        }

    @override
    def wrap(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[Any, Any]:
        exact = self._start_as_main(module)
        if self.stage == 3:
            _keep_vae_whole(module, self.accelerator.device)
        model, wrapped = self.accelerator.prepare(module, optimizer)
        load_whole()
        self.zero = model.optimizer
        self.optimizer = self.zero.optimizer
        with torch.no_grad():  # it made its float32 weights from ones cast to bf16 or fp16
            for name, parameter in module.named_parameters():
                if name in exact:
                    self.local(parameter).copy_(self.part(parameter, exact.pop(name)))
        return model, wrapped

    @override
    def local(self, parameter: nn.Parameter, kind: str | None = None) -> Tensor:
        if kind == COUNT:
            return torch.as_tensor(self.optimizer.state[self._stretch(parameter)][kind])
        if self.stage == 3:
            return self.zero._get_fp32_opt_state_partition(parameter, False, kind)[0]
        mapping = parameter._hp_mapping
        if mapping is None:  # all of it lies with others
            return torch.empty(0)
        return mapping.hp_fragment if kind is None else mapping.optim_fragment[kind]

    @override
    def part(self, parameter: nn.Parameter, whole: Tensor) -> Tensor:
        flat = whole.flatten()
        if self.stage == 3:
            size = self.local(parameter).numel()
            piece = flat[size * self.accelerator.process_index :][:size]
            return nn.functional.pad(piece, (0, size - piece.numel()))
        mapping = parameter._hp_mapping
        return flat[:0] if mapping is None else flat.narrow(0, *_span(mapping))

    @override
    def whole(self, parameter: nn.Parameter, part: Tensor) -> Tensor:
        device = self.accelerator.device
        if self.stage == 3:
            pieces = torch.empty(part.numel() * self.accelerator.num_processes, dtype=part.dtype, device=device)
            dist.all_gather_into_tensor(pieces, part.to(device).contiguous())
            return pieces[: parameter.ds_numel].view(parameter.ds_shape)
        flat = torch.zeros(parameter.numel(), dtype=torch.float32, device=device)
        mapping = parameter._hp_mapping
        if mapping is not None:
            flat.narrow(0, *_span(mapping)).copy_(part)
        dist.all_reduce(flat)
        return flat.view_as(parameter)

    @override
    def states(self, parameter: nn.Parameter) -> tuple[str, ...]:
        return tuple(self.optimizer.state.get(self._stretch(parameter), ()))

    @override
    def put(self, parameter: nn.Parameter, kind: str, whole: Tensor) -> None:
        stretch = self._stretch(parameter)
        state = self.optimizer.state[stretch]
        if kind == COUNT:
            state[kind] = self._count(whole)
            return
        if kind not in state:
            state[kind] = torch.zeros_like(stretch.data)
        mapping = getattr(parameter, "_hp_mapping", None)
        if mapping is not None:
            mapping.set_optim_state_fragment(stretch, state)
        self.local(parameter, kind).copy_(self.part(parameter, whole))

    def _stretch(self, parameter: nn.Parameter) -> Tensor:
        """What DeepSpeed's own optimizer holds in place of the parameter: a stretch of many, laid end to end."""
        if self.stage == 3:
            return self.zero.fp32_partitioned_groups_flat[self.zero.grad_position[self.zero.get_param_id(parameter)][0]]
        groups = self.zero.bit16_groups
        group = next(place for place, members in enumerate(groups) if any(one is parameter for one in members))
        return self.zero.single_partition_of_fp32_groups[group]

    @override
    def scaler(self) -> dict[str, Any] | None:
        scaler = getattr(self.zero, "loss_scaler", None)
        told = {name: value for name, value in vars(scaler).items() if isinstance(value, bool | int | float)} if scaler else {}
        return told if self.accelerator.mixed_precision == "fp16" else None

    @override
    def load_scaler(self, state: dict[str, Any]) -> None:
        if state.keys() == (self.scaler() or {}).keys():
            vars(self.zero.loss_scaler).update(state)


def _span(mapping: Any) -> tuple[int, int]:
    """Where in a parameter, laid flat, this process's part begins, and its length (ZeRO-1 and 2)."""
    return mapping.lp_fragment_address.start, mapping.lp_fragment_address.numel


class Fsdp2(Layout):
    """PyTorch FSDP2: each process has a part of every trained weight, its gradient and the optimizer's state.

    The blocks that the model's parts name as not to be split are shared out whole, frozen weights and all; what is trained
    outside of them is shared out together; what is frozen outside of them stays on each process.
    """

    sharded = spreads_frozen = True

    @property
    @override
    def name(self) -> str:
        return "FSDP2"

    @override
    def configure(self, train: Any, share: int) -> None:
        if self.accelerator.mixed_precision == "fp16":
            raise DataError("fp16 is not supported under FSDP2: its loss scaler knows nothing of shards; use bf16, or ZeRO-2")

    @override
    def wrap(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[Any, Any]:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        device = self.accelerator.device
        names = {id(parameter): name for name, parameter in module.named_parameters()}
        for part in module.modules():
            _to_device(part, device)
        self._start_as_main(module)
        mesh = init_device_mesh(device.type, (self.accelerator.num_processes,))
        again = os.environ.get("FSDP_RESHARD_AFTER_FORWARD", "true").lower() != "false"
        for block in _blocks(module):
            fully_shard(block, mesh=mesh, reshard_after_forward=again)
        whole = {
            parameter for parameter in module.parameters() if not parameter.requires_grad and not isinstance(parameter, DTensor)
        }
        fully_shard(module, mesh=mesh, reshard_after_forward=again, ignored_params=whole)
        parts = dict(module.named_parameters())
        for group in optimizer.param_groups:
            group["params"] = [parts[names[id(parameter)]] for parameter in group["params"]]
        self.optimizer = optimizer
        model = self.accelerator.prepare_model(module, device_placement=False, evaluation_mode=True)  # no DDP around it
        return model, self.accelerator.prepare_optimizer(optimizer, device_placement=False)

    @override
    def local(self, parameter: nn.Parameter, kind: str | None = None) -> Tensor:
        held = parameter.data if kind is None else self.optimizer.state[parameter][kind]
        return held.to_local() if isinstance(held, DTensor) else held

    @override
    def part(self, parameter: nn.Parameter, whole: Tensor) -> Tensor:
        return self._shared_out(parameter, whole).to_local()

    @override
    def whole(self, parameter: nn.Parameter, part: Tensor) -> Tensor:
        like: Any = parameter
        shared = DTensor.from_local(
            part, like.device_mesh, like.placements, run_check=False, shape=parameter.shape, stride=parameter.stride()
        )
        return shared.full_tensor()

    @override
    def put(self, parameter: nn.Parameter, kind: str, whole: Tensor) -> None:
        self.optimizer.state[parameter][kind] = self._count(whole) if kind == COUNT else self._shared_out(parameter, whole)

    @staticmethod
    def _shared_out(parameter: Any, whole: Tensor) -> DTensor:
        whole = whole.to(parameter.device)
        return distribute_tensor(whole, parameter.device_mesh, parameter.placements, src_data_rank=None)


def _keep_vae_whole(module: nn.Module, device: torch.device) -> None:
    """Take a frozen VAE out of the module tree, so that ZeRO-3, which spreads all that it finds there, leaves it whole.

    It is small, and which processes run it depends on their samples: on what is cached, on references that are dropped. Were
    it spread over the processes, those that run it would wait for ever for those that do not.
    """
    gen: Any = getattr(module, "gen", None)
    vae = None if gen is None else gen._modules.get("vae")
    if vae is not None and not any(parameter.requires_grad for parameter in vae.parameters()):
        del gen._modules["vae"]
        gen.__dict__["vae"] = vae.to(device)


def _blocks(module: nn.Module) -> list[nn.Module]:
    """The blocks that the parts of a model name as not to be split, inner ones first; the VAE's are small and left out."""
    found: list[nn.Module] = []
    for name, part in module.named_modules():
        kinds = set(getattr(part, "_no_split_modules", None) or ())
        if kinds and not name.endswith("vae"):
            found += [one for one in part.modules() if type(one).__name__ in kinds and one not in found]
    order = {one: place for place, one in enumerate(module.modules())}
    return sorted((one for one in found if any(True for _ in one.parameters())), key=lambda one: -order[one])


def _to_device(module: nn.Module, device: torch.device) -> None:
    """Move a module's own weights and buffers; parts without weights ("meta") stay as they are."""
    for held in (module._parameters, module._buffers):
        for name, tensor in held.items():
            if tensor is not None and not tensor.is_meta and tensor.device != device:
                if isinstance(tensor, nn.Parameter):
                    tensor.data = tensor.data.to(device)
                else:
                    held[name] = tensor.to(device)
