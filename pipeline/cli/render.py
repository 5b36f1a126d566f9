"""Connector files in, what Kubernetes or a managed Connect takes of them out."""

from __future__ import annotations

import click

from pipeline import deployment
from pipeline.cli.output import as_yaml, print_object, print_rows
from pipeline.deployment import Plan
from pipeline.runtime import connect as stage

__all__ = ["render"]


@click.command()
@click.argument("paths", metavar="FILE|FOLDER|- …", nargs=-1, required=True)
@click.option("-o", "--output", type=click.Choice(["strimzi", "json"]), default="strimzi", show_default=True)
@click.option("--cluster", default="connect", show_default=True, help="Strimzi: the KafkaConnect that runs it.")
@click.option(
    "--secret", default="", metavar="NAMESPACE/NAME", help="Strimzi: the Secret that holds what ${env:…} names."
)
@click.option(
    "--api",
    type=click.Choice(stage.STRIMZI_APIS),
    default=stage.STRIMZI_APIS[0],
    show_default=True,
    help="Strimzi: v1 since 0.49, v1beta2 before.",
)
@click.option("--allow-plain-secrets", is_flag=True, help="Take secrets that stand in a file as they are.")
def render(paths: tuple[str, ...], output: str, cluster: str, secret: str, api: str, allow_plain_secrets: bool) -> None:
    """Print connector files for Kubernetes or a managed Connect. As Strimzi's KafkaConnector manifests, or as JSON.

    \b
    Example:
      pipeline connector render connectors/outbox.json --cluster events --secret shop/postgres | kubectl apply -f -
      pipeline connector render connectors/outbox.json -o json
    """
    found = stage.for_connect(paths)
    if not allow_plain_secrets:
        deployment.plain_secrets(Plan(one, None, []) for one in found)
    if output == "strimzi":
        documents = [stage.kafka_connector(one, cluster=cluster, secret=secret, api=api) for one in found]
        click.echo("\n---\n".join(as_yaml(document) for document in documents))
    elif len(found) == 1:
        print_object(stage.plain(found[0]), "json")
    else:
        print_rows([stage.plain(one) for one in found], "json")
