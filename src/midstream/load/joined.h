// SPDX-License-Identifier: MIT
/* Many sensors' connections in one: pieces, and before each of them this. */
#pragma once
#include <stdint.h>

struct piece {
	uint16_t stream; /* from 0, in the order in which they were opened */
	uint16_t kind;	 /* which of the ports it came to, from 0, in the order of the arguments */
	uint32_t length; /* bytes that follow; 0: the stream has ended */
};
