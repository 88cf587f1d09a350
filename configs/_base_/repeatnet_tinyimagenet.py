_base_ = ['./datasets/tinyimagenet_b128.py', './schedules/tinyimagenet_b128_90e.py', './mmshared.py']
