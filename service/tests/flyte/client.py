# SPDX-License-Identifier: MIT OR Apache-2.0
"""Fetches the client configuration in the way of Flyte's SDK. Prints it in JSON.

Usage: client.py URL
"""

import asyncio
import sys

from flyte.remote._client.auth._client_config import RemoteClientConfigStore


async def main():
    config = await RemoteClientConfigStore(sys.argv[1]).get_client_config()
    print(config.model_dump_json())


asyncio.run(main())
