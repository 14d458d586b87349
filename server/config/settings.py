"""From options to the settings of the server, checked together."""

from __future__ import annotations

from server.config.options import Options
from server.config.specs import folder_settings, given_files, make_specs
from shared.errors import ConfigurationError
from shared.sampling import SamplingParams
from shared.settings import AccessSettings, ChatSettings, ModelSpec, Settings
from workers.machine.cores import Machine, read_machine
from workers.machine.plan_text import explain
from workers.machine.topology import Plan, make_plan


def build_settings(options: Options) -> Settings:
    """Raises ConfigurationError for options that cannot work together, or on this machine."""
    machine, folder = read_machine(), folder_settings(options)
    specs, plan = (
        _planned(options, machine) if folder is None else ((), _folder_plan(options, machine))
    )
    return Settings(
        host=options.host,
        port=options.port,
        models=specs,
        sampling=SamplingParams(
            temp=options.temp,
            top_k=options.top_k,
            top_p=options.top_p,
            repeat_penalty=options.repeat_penalty,
            repeat_last_n=options.repeat_last_n,
        ),
        drain_timeout_s=options.drain_timeout,
        send_timeout_s=options.send_timeout,
        plan=explain(machine, plan),
        log_level=options.log_level,
        folder=folder,
        chat=ChatSettings(options.chat_template, options.prompts, options.system),
        access=AccessSettings(
            options.api_key_file and options.api_key_file.absolute(),
            options.allowed_host,
            options.cors_origin,
            options.trusted_proxy,
        ),
        request_timeout_s=options.request_timeout,
        log_prompts=options.log_prompts == "on",
    )


def _planned(options: Options, machine: Machine) -> tuple[tuple[ModelSpec, ...], Plan]:
    """The models of -m and the plan of their workers."""
    specs, plan = make_specs(given_files(options), options, machine)
    if options.restore_prompt and len(specs) > 1:
        raise ConfigurationError("--restore-prompt needs a single model: give one -m")
    return specs, plan


def _folder_plan(options: Options, machine: Machine) -> Plan:
    """The plan of the workers of each model in --models-dir, if its engine can batch."""
    return make_plan(machine, batches=True, threads=options.num_threads, workers=options.workers)
