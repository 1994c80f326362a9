// SPDX-License-Identifier: MIT
/* How late messages were: a histogram of bounded size, 32 slots to each power of two, so 3 % wide. */
#pragma once
#include <stdint.h>

#define SLOTS (64 * 32)

static uint64_t histogram[SLOTS], latest;

static void late(uint64_t nanoseconds)
{
	unsigned int slot = nanoseconds;

	if (nanoseconds > latest)
		latest = nanoseconds;
	if (nanoseconds >= 32) {
		unsigned int power = 63 - __builtin_clzll(nanoseconds);

		slot = (power - 4) * 32 + ((nanoseconds >> (power - 5)) & 31);
	}
	histogram[slot]++;
}

static double quantile(double share)
{
	uint64_t total = 0, seen = 0;

	for (int slot = 0; slot < SLOTS; slot++)
		total += histogram[slot];
	for (int slot = 0; slot < SLOTS; slot++) {
		seen += histogram[slot];
		if (total && seen >= share * total) {
			int power = slot / 32 + 4;

			return slot < 32 ? slot : (double)((32ull + slot % 32) << (power - 5));
		}
	}
	return 0;
}
