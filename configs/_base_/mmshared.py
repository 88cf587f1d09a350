# Registers the types of mmshared and makes its Runner the one that trains and tests, also in the tools of mmdet and
# mmpretrain.
custom_imports = dict(imports=['mmshared'], allow_failed_imports=False)
runner_type = 'SharingRunner'
