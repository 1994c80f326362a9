// SPDX-License-Identifier: MIT
/* What a message of the load looks like; message.py says the same for NumPy.
 *
 *   u64  sequence, from 0 on each connection
 *   u64  time at which it was sent, CLOCK_REALTIME in nanoseconds
 *   u64  filler[]: a function of connection, sequence and place, the last word cut where the message ends
 *
 * All little-endian. Whoever receives a message can verify every byte of it but the time.
 */
#pragma once
#include <stdint.h>
#include <string.h>
#include <time.h>

#define HEADER 16
#define LARGEST (1 << 20)
#define CONNECTIONS (1 << 16)

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "messages are little-endian, and so must be this machine"
#endif

/* The finaliser of splitmix64: neighbours get words that have nothing in common. */
static inline uint64_t mix(uint64_t x)
{
	x += 0x9E3779B97F4A7C15;
	x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9;
	x = (x ^ (x >> 27)) * 0x94D049BB133111EB;
	return x ^ (x >> 31);
}

static inline uint64_t word(uint32_t connection, uint64_t sequence, uint32_t place)
{
	return mix(((uint64_t)connection << 48) + (sequence << 17) + place);
}

static inline uint64_t now(clockid_t clock)
{
	struct timespec time;

	clock_gettime(clock, &time);
	return (uint64_t)time.tv_sec * 1000000000 + (uint64_t)time.tv_nsec;
}

/* Fill in everything but the time. `size` is at least HEADER. */
static inline void fill(uint8_t *message, uint32_t size, uint32_t connection, uint64_t sequence)
{
	uint32_t place = 0;

	memcpy(message, &sequence, 8);
	for (uint32_t at = HEADER; at < size; at += 8) {
		uint64_t value = word(connection, sequence, place++);

		memcpy(message + at, &value, size - at < 8 ? size - at : 8);
	}
}

/* Whether a message is that of this connection and sequence. */
static inline int fits(const uint8_t *message, uint32_t size, uint32_t connection, uint64_t sequence)
{
	uint32_t place = 0;

	if (memcmp(message, &sequence, 8))
		return 0;
	for (uint32_t at = HEADER; at < size; at += 8) {
		uint64_t value = word(connection, sequence, place++);

		if (memcmp(message + at, &value, size - at < 8 ? size - at : 8))
			return 0;
	}
	return 1;
}
