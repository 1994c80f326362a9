// SPDX-License-Identifier: MIT
/* Many streams on one connection: pieces, and before each of them this. */
#pragma once
#include <stdint.h>

struct piece {
	uint32_t stream; /* from 0, in the order in which they were opened */
	uint32_t length; /* bytes that follow; 0: the stream has ended */
};
